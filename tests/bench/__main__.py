"""`python -m tests.bench [--jobs 1000] [--output bench.json]`: what docs/performance.md tells, measured again."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.load import Load
from tests.bench.machine import machine
from tests.cluster.control_plane import ControlPlane, start_control_plane
from tests.cluster.processes import wait_until
from tests.operator_process import OperatorProcess, install_crd, running_operator

PATIENCE = 300.0  # seconds
SINGLE = 50  # jobs applied one after the other on the otherwise idle machine


def main() -> None:
    """Runs all measurements and prints them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    sizes = [int(word) for word in os.environ.get("FINETUNE_BENCH_JOBS", "200 1000").split()]
    parser.add_argument("--jobs", type=int, nargs="+", default=sizes, help="sizes of the burst (FINETUNE_BENCH_JOBS)")
    parser.add_argument("--no-controllers", action="store_true", help="without kube-controller-manager: no pods")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    results = {"machine": machine(), "controllers": not arguments.no_controllers, "bursts": []}
    for count in arguments.jobs:
        results["bursts"].append(measure(count, controllers=not arguments.no_controllers))
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def measure(count: int, *, controllers: bool) -> dict[str, Any]:
    """A fresh API server and operator for a burst of `count` jobs."""
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as folder:
        plane = start_control_plane(controller_manager=controllers)
        try:
            return _measure(plane, Path(folder), count)
        finally:
            plane.stop()


def _measure(plane: ControlPlane, folder: Path, count: int) -> dict[str, Any]:
    install_crd(plane)
    plane.kubectl.make_namespace("bench")
    with running_operator(plane, folder, user="admin") as operator:
        operator.wait_for_log("resync=done")
        single = asyncio.run(one_by_one(plane))
        settle(operator)
        before = counters(operator)
        burst, created = asyncio.run(all_at_once(plane, count))
        settle(operator)
        after = counters(operator)
        peak = memory(operator)
        idle = still(operator)
    return {
        "jobs": count,
        "one_by_one": single,
        "burst": {
            "created_seconds": created,
            "last_first_job_seconds": burst["last"],
            "first_job_after_create": burst["latency"],
            "writes_per_job": round((after["writes"] - before["writes"]) / count, 2),
            "reads": after["reads"] - before["reads"],
            "passes_per_job": round((after["passes"] - before["passes"]) / count, 2),
            "operator_cpu_seconds": round(after["cpu"] - before["cpu"], 2),
        },
        "memory": peak,
        "idle": idle,
        "restart": restart(plane, folder, count + SINGLE),
    }


async def one_by_one(plane: ControlPlane) -> dict[str, float]:
    """Latency of one job alone, `SINGLE` times."""
    async with Load(plane, "bench") as load:
        for number in range(SINGLE):
            name = f"single-{number}"
            await load.create(name)
            await load.wait_for_jobs([name], PATIENCE)
            await asyncio.sleep(0.05)
        return percentiles(load.seen.latencies())


async def all_at_once(plane: ControlPlane, count: int) -> tuple[dict[str, Any], float]:
    """Latencies in a burst, and when it was created. Seconds from the first POST."""
    names = [f"burst-{number}" for number in range(count)]
    async with Load(plane, "bench") as load:
        start = time.monotonic()
        await load.create_all(names)
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
        "reads": operator.reads(),
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

    wait_until(quiet, PATIENCE, "the operator is idle", operator.component.tail)
    return last[1]


def still(operator: OperatorProcess, seconds: float = 10.0) -> dict[str, float]:
    """What an idle operator costs."""
    before = counters(operator)
    time.sleep(seconds)
    after = counters(operator)
    return {"seconds": seconds, **{key: round(after[key] - before[key], 3) for key in after}}


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
