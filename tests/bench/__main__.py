"""`python -m tests.bench [--jobs 1000] [--output bench.json]`: what docs/performance.md tells, measured again."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.bench import floor
from tests.bench.budgets import judge
from tests.bench.load import Load
from tests.bench.machine import machine
from tests.cluster.control_plane import ControlPlane, start_control_plane, start_controller_manager
from tests.cluster.processes import wait_until
from tests.operator_process import OperatorProcess, install_crd, running_operator

PATIENCE = 600.0  # seconds
SINGLE = 50  # jobs applied one after the other on the otherwise idle machine
LIVES = 100  # jobs that go from their first Job to a server
QUICK = ("--kube-api-qps=500", "--kube-api-burst=1000")  # the controllers' own limit of 20 a second is not our matter
CHILDREN = ("configmaps", "jobs", "deployments", "services")


def main() -> None:
    """Runs all measurements and prints them as JSON; with --strict the exit code says whether all budgets were kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    sizes = [int(word) for word in os.environ.get("FINETUNE_BENCH_JOBS", "200 1000").split()]
    idle = float(os.environ.get("FINETUNE_BENCH_IDLE_SECONDS", "10"))
    parser.add_argument("--jobs", type=int, nargs="+", default=sizes, help="sizes of the burst (FINETUNE_BENCH_JOBS)")
    parser.add_argument("--idle", type=float, default=idle, help="seconds of idleness (FINETUNE_BENCH_IDLE_SECONDS)")
    parser.add_argument("--no-controllers", action="store_true", help="without kube-controller-manager: no pods")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a budget is missed")
    arguments = parser.parse_args()
    controllers = not arguments.no_controllers
    results: dict[str, Any] = {"machine": machine(), "controllers": controllers, "sizes": []}
    life = {"life": measured(life_of, min(LIVES, max(arguments.jobs)), controllers=True)} if controllers else {}
    for count in arguments.jobs:
        least = measured(floor_of, count, controllers=controllers)
        found = {"jobs": count, **life, "floor": least}
        found |= measured(burst_of, count, arguments.idle, controllers=controllers)
        results["sizes"].append({**found, "budgets": judge(found)})
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    missed = [row for found in results["sizes"] for row in found["budgets"] if not row["kept"]]
    if missed and arguments.strict:
        raise SystemExit(f"missed: {missed}")


def measured(what: Callable[..., dict[str, Any]], *arguments: Any, controllers: bool) -> dict[str, Any]:
    """A fresh API server for one measurement."""
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        plane = start_control_plane()
        try:
            if controllers:
                start_controller_manager(plane, *QUICK)
            install_crd(plane)
            plane.kubectl.make_namespace("bench")
            return what(plane, Path(folder), *arguments)
        finally:
            plane.stop()


def life_of(plane: ControlPlane, folder: Path, count: int) -> dict[str, Any]:
    """What `count` jobs cost from their creation to their servers, when every stage goes well."""
    with running_operator(plane, folder, user="admin") as operator:
        operator.wait_for_log("resync=done")
        before, requests = counters(operator), written(operator)
        asyncio.run(to_their_servers(plane, count))
        settle(operator)
        after = counters(operator)
        made = {key: round((number - requests[key]) / count, 2) for key, number in written(operator).items()}
    return {
        "jobs": count,
        "writes_per_job": made,
        "passes_per_job": round((after["passes"] - before["passes"]) / count, 2),
        "operator_cpu_ms_per_job": round((after["cpu"] - before["cpu"]) / count * 1000, 1),
    }


def written(operator: OperatorProcess) -> Counter[str]:
    """Requests that changed something until now, by resource."""
    return Counter(
        {
            resource: sum(
                operator.metric("finetune_api_requests_total", verb=verb, code="200", resource=resource)
                for verb in ("POST", "PUT", "PATCH", "DELETE")
            )
            for resource in (*CHILDREN, "finetunejobs/status", "events")
        }
    )


def burst_of(plane: ControlPlane, folder: Path, count: int, idle: float) -> dict[str, Any]:
    """One job after the other, then `count` at once, then nothing, then a restart."""
    with running_operator(plane, folder, user="admin") as operator:
        operator.wait_for_log("resync=done")
        single = asyncio.run(one_by_one(plane))
        settle(operator)
        before, processors = counters(operator), cpu_seconds(plane, operator)
        burst, created = asyncio.run(all_at_once(plane, count))
        reached = cpu_seconds(plane, operator)
        settle(operator)
        after = counters(operator)
        peak = memory(operator)
        quiet = still(operator, idle)
    passes = after["passes"] - before["passes"]
    return {
        "one_by_one": single,
        "burst": {
            "created_seconds": created,
            "last_first_job_seconds": burst["last"],
            "first_job_after_create": burst["latency"],
            "cpu_seconds_until_then": {key: round(reached[key] - processors[key], 2) for key in reached},
            "writes_per_job": round((after["writes"] - before["writes"]) / count, 2),
            "lists": after["lists"] - before["lists"],
            "reads_per_pass": (after["gets"] - before["gets"]) / max(1, passes),
            "passes_per_job": round(passes / count, 2),
            "operator_cpu_ms_per_job": round((after["cpu"] - before["cpu"]) / count * 1000, 1),
        },
        "memory": peak,
        "idle": quiet,
        "restart": restart(plane, folder, count + SINGLE),
    }


def floor_of(plane: ControlPlane, _: Path, count: int) -> dict[str, Any]:
    """The same objects as in a burst, made without an operator."""
    before = cpu_seconds(plane)
    burst, created = asyncio.run(all_at_once(plane, count, create=floor.create_all))
    reached = cpu_seconds(plane)
    return {
        "created_seconds": created,
        "last_first_job_seconds": burst["last"],
        "cpu_seconds_until_then": {key: round(reached[key] - before[key], 2) for key in reached},
    }


def cpu_seconds(plane: ControlPlane, operator: OperatorProcess | None = None) -> dict[str, float]:
    """Processor time of every process until now; `load` is this one."""
    pids = {each.name: each.pid for each in plane.components} | {"load": os.getpid()}
    if operator:
        pids["operator"] = operator.component.pid
    ticks = os.sysconf("SC_CLK_TCK")
    fields = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for name, pid in pids.items()}
    return {name: (int(found[11]) + int(found[12])) / ticks for name, found in fields.items()}


async def to_their_servers(plane: ControlPlane, count: int) -> None:
    names = [f"life-{number}" for number in range(count)]
    async with Load(plane, "bench") as load:
        kubelets = asyncio.create_task(load.kubelets.run())
        await load.create_all(names)
        await load.wait_for_ready(names, PATIENCE)
        kubelets.cancel()


async def one_by_one(plane: ControlPlane) -> dict[str, Any]:
    """Latency of one job alone, `SINGLE` times: to its first Job, and from a pod's event to the status."""
    async with Load(plane, "bench") as load:
        for number in range(SINGLE):
            name = f"single-{number}"
            await load.create(name)
            await load.wait_for_jobs([name], PATIENCE)
            if controllers(plane):
                await load.say_unschedulable(name, PATIENCE)
            await asyncio.sleep(0.05)
        answers = load.seen.answers()
        told = {"pod_event_to_status": percentiles(answers)} if answers else {}
        return {"first_job": percentiles(load.seen.latencies()), **told}


def controllers(plane: ControlPlane) -> bool:
    return any(each.name == "kube-controller-manager" for each in plane.components)


async def all_at_once(
    plane: ControlPlane, count: int, create: Callable[[Load, list[str]], Awaitable[None]] = Load.create_all
) -> tuple[dict[str, Any], float]:
    """Latencies in a burst, and when it was created. Seconds from the first POST."""
    names = [f"burst-{number}" for number in range(count)]
    async with Load(plane, "bench", only_jobs=True) as load:
        start = time.monotonic()
        await create(load, names)
        created = round(time.monotonic() - start, 2)
        await load.wait_for_jobs(names, PATIENCE)
        last = round(max(load.seen.first_job.values()) - start, 2)
        return {"last": last, "latency": percentiles(load.seen.latencies())}, created


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and maximum, milliseconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        name: round(value * 1000, 1)
        for name, value in (("p50_ms", cuts[49]), ("p99_ms", cuts[98]), ("max_ms", values[-1]))
    }


def counters(operator: OperatorProcess) -> dict[str, float]:
    return {
        "writes": operator.writes(),
        "lists": operator.metric("finetune_api_requests_total", verb="LIST"),
        "gets": operator.reads() - operator.metric("finetune_api_requests_total", verb="LIST"),
        "passes": operator.passes(),
        "cpu": operator.metric("process_cpu_seconds_total"),
    }


def memory(operator: OperatorProcess) -> dict[str, float]:
    """Resident memory now and at its peak, MiB."""
    lines = Path(f"/proc/{operator.component.pid}/status").read_text().splitlines()
    found = {
        key: int(rest.split()[0])
        for key, _, rest in (line.partition(":") for line in lines)
        if "VmRSS" in key or "VmHWM" in key
    }
    return {"resident_mib": round(found["VmRSS"] / 1024, 1), "peak_mib": round(found["VmHWM"] / 1024, 1)}


def settle(operator: OperatorProcess, seconds: float = 3.0) -> float:
    """Waits until no pass has ended for some seconds. Returns when the last one ended, monotonic."""
    last = [operator.passes(), time.monotonic()]

    def quiet() -> bool:
        now = operator.passes()
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > seconds

    wait_until(quiet, PATIENCE, "the operator is idle", operator.component.tail, interval=0.5)
    return last[1]


def still(operator: OperatorProcess, seconds: float) -> dict[str, float]:
    """What an idle operator costs."""
    before = counters(operator)
    time.sleep(seconds)
    after = counters(operator)
    found = {key: round(after[key] - before[key], 3) for key in after}
    return {"seconds": seconds, **found, "reads_beside_lists": found["gets"]}


def restart(plane: ControlPlane, folder: Path, jobs: int) -> dict[str, float]:
    """A new process with all jobs there: when its last pass ends, and what it writes."""
    start = time.monotonic()
    with running_operator(plane, folder, name="restarted", user="admin", FINETUNE_RESYNC_SECONDS="3600") as operator:
        wait_until(lambda: operator.passes() >= jobs, PATIENCE, "a pass over every job", operator.component.tail)
        first_passes = time.monotonic() - start
        steady = settle(operator) - start
        return {
            "jobs": jobs,
            "every_job_passed_seconds": round(first_passes, 2),
            "steady_seconds": round(steady, 2),
            "writes": operator.writes(),
            "cpu_seconds": round(operator.metric("process_cpu_seconds_total"), 2),
            **memory(operator),
        }


if __name__ == "__main__":
    main()
