"""`python -m tests.bench.soak [--seconds 1800] [--seed 1]`: two replicas on a real API server, jobs that come, change
and go, and a fault every few seconds. In the end all jobs have come to rest, and nothing is left or was done twice.

Faults of the first part (half of it; --hard): a replica killed or frozen past its Lease, the API server frozen or away
for up to a minute, etcd killed, pods deleted, failing or interrupted. A leader that loses its Lease ends, and its
memory with it: so the second part has only faults that a leader lives through, and the same work in rounds. After each
all jobs of the round before are gone, as many new ones are at rest, and the leader's memory is read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.__main__ import QUICK
from tests.bench.fates import Fates
from tests.bench.growth import Reading, grew, growth
from tests.bench.load import session_to
from tests.bench.machine import machine
from tests.cluster.control_plane import ControlPlane, start_control_plane, start_controller_manager
from tests.operator_process import GROUP, HOME, OperatorProcess, install_crd, job_manifest, start_operator

NAMESPACE = "soak"
JOBS = 40
AWAY = (1.0, 60.0)  # seconds for which the API server is away, at most a quarter of the whole
REST = 420.0  # seconds after the last fault in which all must come to rest: longer than the longest delay of a pass
LEASE_SECONDS = 5.0  # of the first part: a replica that is killed or frozen is soon replaced
SHIPPED_LEASE_SECONDS = 15.0  # of the second part, in which a leader shall stay, also on a busy machine
SHORT = 1.0  # seconds without an API server that a leader lives through
ROUND = 10  # jobs of a round
AGAIN = 3  # of them, that train a second time
PATH = f"/apis/{GROUP}/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
MERGE = {"Content-Type": "application/merge-patch+json"}
MADE = ("/apis/batch/v1", "jobs"), ("/api/v1", "configmaps"), ("/apis/apps/v1", "deployments"), ("/api/v1", "services")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the whole soak, and those of its first part, in which no replica is spared."""

    whole: float
    hard: float


class Soak:
    """The setting, and what may happen in it."""

    def __init__(self, plane: ControlPlane, folder: Path, session: aiohttp.ClientSession, seed: int, times: Times):
        self._plane, self._folder, self._session, self._times = plane, folder, session, times
        self._chance = random.Random(seed)
        self.pods = Fates(session, NAMESPACE, random.Random(seed + 1))
        self.replicas: list[OperatorProcess] = []
        self._lease_seconds = LEASE_SECONDS
        self.done: Counter[str] = Counter()
        self._suspended: set[str] = set()  # their trainings may have ended as their Jobs were deleted
        self._number = 0
        self._restless: list[str] = []  # jobs that did not come to rest in time

    def start(self) -> None:
        """One more replica."""
        self._number += 1
        variables = {
            "FINETUNE_LEASE_NAMESPACE": HOME,
            "FINETUNE_LEASE_SECONDS": str(self._lease_seconds),
            "FINETUNE_RESYNC_SECONDS": "60",
            "FINETUNE_REQUEST_SECONDS": "5",
        }
        self.replicas.append(
            start_operator(self._plane, self._folder, name=f"replica-{self._number}", user="admin", **variables)
        )

    async def go_on(self) -> dict[str, Any]:
        """The whole soak; what was seen."""
        for _ in range(2):
            await asyncio.to_thread(self.start)
        kubelets = asyncio.create_task(self.pods.run())
        for _ in range(JOBS):
            await self.create()
        begin = time.monotonic()
        while time.monotonic() - begin < self._times.hard:
            await self._mend()
            await self._user_does_something()
            await self._something_fails()
            await asyncio.sleep(self._chance.uniform(0.5, 6))
        rest = await self._at_rest()
        faults = dict(self.done)
        readings = await self._rounds(begin + self._times.whole)
        result = await self._seen()
        kubelets.cancel()
        return {
            "seconds": round(time.monotonic() - begin),
            "first_part": faults,
            "done": dict(self.done),
            "at_rest_after_seconds": rest,
            "restless": self._restless,
            "memory": growth(readings),
            **result,
        }

    async def _rounds(self, end: float) -> list[Reading]:
        """The same work again and again, until the time is over; what the leader's memory was after each."""
        readings: list[Reading] = []
        self._lease_seconds = SHIPPED_LEASE_SECONDS
        for replica in self.replicas:
            replica.kill()
        await self._mend()
        while time.monotonic() < end:
            faults = asyncio.create_task(self._survivable_faults())
            try:
                readings.append(await self._round())
            finally:
                faults.cancel()
                await asyncio.gather(faults, return_exceptions=True)
                self._plane.resume_api_server()
        return readings

    async def _round(self) -> Reading:
        for job in (await self._ask("GET", PATH))["items"]:
            await self._ask("DELETE", f"{PATH}/{job['metadata']['name']}")
        first = self.done["created"] + 1
        for _ in range(ROUND):
            await self.create()
        await self._until_rest()
        for number in range(first, first + AGAIN):
            await self._change(f"job-{number}", {"rerunToken": "again"})
        await self._until_rest()
        self.done["rounds"] += 1
        return await self._reading()

    async def _survivable_faults(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 6))
            fault = self._chance.choice([self._pod_deleted, self._pod_deleted, self._api_server_blinks])
            self.done[fault.__name__.strip("_")] += 1
            await fault()

    async def _api_server_blinks(self) -> None:
        self._plane.pause_api_server()
        await asyncio.sleep(self._chance.uniform(0.1, SHORT))
        self._plane.resume_api_server()

    async def create(self) -> None:
        self.done["created"] += 1
        name = f"job-{self.done['created']}"
        await self._ask("POST", PATH, json=job_manifest(name, NAMESPACE))

    async def _user_does_something(self) -> None:
        names = [each["metadata"]["name"] for each in (await self._ask("GET", PATH))["items"]]
        name = self._chance.choice(names)
        what = self._chance.choice(["replaced", "rerun", "suspended", "resumed"])
        self.done[what] += 1
        if what == "replaced":
            await self._ask("DELETE", f"{PATH}/{name}")
            await self.create()
            return
        if what == "suspended":
            self._suspended.add(name)
        spec: dict[str, Any] = {"rerunToken": f"t{self.done['rerun']}"} if what == "rerun" else {}
        await self._change(name, spec or {"suspend": what == "suspended"})

    async def _change(self, name: str, spec: dict[str, Any]) -> None:
        await self._ask("PATCH", f"{PATH}/{name}", data=json.dumps({"spec": spec}), headers=MERGE)

    async def _something_fails(self) -> None:
        faults = {
            self._pod_deleted: 5,
            self._api_server_frozen: 2,
            self._etcd_killed: 1,
            self._api_server_away: 1,
            self._replica_killed: 3,
            self._replica_frozen: 2,
        }
        fault = self._chance.choices(list(faults), list(faults.values()))[0]
        self.done[fault.__name__.strip("_")] += 1
        await fault()

    async def _pod_deleted(self) -> None:
        if self.pods.running:
            name = self._chance.choice(sorted(self.pods.running))
            self.pods.deleted.add(name)
            await self._ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}")

    async def _api_server_frozen(self) -> None:
        self._plane.pause_api_server()
        await asyncio.sleep(self._chance.uniform(1, 12))
        self._plane.resume_api_server()

    async def _etcd_killed(self) -> None:
        self._plane.kill("etcd")
        await asyncio.sleep(self._chance.uniform(0, 5))
        self._plane.revive("etcd")

    async def _api_server_away(self) -> None:
        self._plane.kill("kube-apiserver")
        await asyncio.sleep(min(self._chance.uniform(*AWAY), self._times.hard / 2))
        self._plane.revive("kube-apiserver")

    async def _replica_killed(self) -> None:
        self._chance.choice(self.replicas).kill()

    async def _replica_frozen(self) -> None:
        replica = self._chance.choice(self.replicas)
        replica.signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LEASE_SECONDS)
        replica.signal(signal.SIGCONT)

    async def _mend(self) -> None:
        """What a cluster does about programs that have ended."""
        await self._ask("GET", "/readyz")
        for each in list(self._plane.components):
            if not each.running():
                self._plane.revive(each.name)
        self.replicas = [each for each in self.replicas if each.component.running()]
        while len(self.replicas) < 2:
            await asyncio.to_thread(self.start)

    async def _at_rest(self) -> int:
        """Resumes what is suspended and waits until all is at rest; how many seconds that took."""
        began = time.monotonic()
        await self._mend()
        for job in (await self._ask("GET", PATH))["items"]:
            if job["spec"].get("suspend"):
                await self._change(job["metadata"]["name"], {"suspend": False})
        await self._until_rest()
        return round(time.monotonic() - began)

    async def _until_rest(self) -> None:
        """Until every job serves or is stalled; those that are not when it has taken too long are remembered."""
        deadline = time.monotonic() + REST
        while restless := sorted(_restless((await self._ask("GET", PATH))["items"])):
            if time.monotonic() > deadline:
                self._restless += restless
                return
            await self._mend()
            await asyncio.sleep(1)

    async def _seen(self) -> dict[str, Any]:
        logs = [path.read_text(errors="replace") for path in self._folder.glob("replica-*.log")]
        return {
            "orphans": await self._orphans(),
            "unexpected_errors": sum(log.count("error=unexpected") for log in logs),
            "words_read": sum(log.count("last_words=read") for log in logs),
            "trained_twice": self._trained_twice(),
            "trainings": sum(map(len, self.pods.trained.values())),
        }

    def _trained_twice(self) -> dict[str, list[str]]:
        """Trainings of which a second pod ended well, though the first one's words were there to be read.

        They were not when the job was suspended, or the pod deleted, in the moment in which it ended: the trainer
        finds its report on the volume then, and says it again.
        """
        return {
            name: pods
            for name, pods in self.pods.trained.items()
            if len(pods) > 1
            and name.rpartition("-r")[0] not in self._suspended
            and not self.pods.deleted.issuperset(pods[:-1])
        }

    async def _orphans(self) -> list[str]:
        """Children of jobs that are gone, after the garbage collector has had its time."""
        deadline = time.monotonic() + 90
        while True:
            owners = {each["metadata"]["uid"] for each in (await self._ask("GET", PATH))["items"]}
            left = []
            for root, plural in MADE:
                path = f"{root}/namespaces/{NAMESPACE}/{plural}?labelSelector={GROUP}/job"
                for each in (await self._ask("GET", path))["items"]:
                    if each["metadata"]["ownerReferences"][0]["uid"] not in owners:
                        left.append(f"{plural}/{each['metadata']['name']}")
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(2)

    async def _reading(self) -> Reading:
        """Of the leader."""
        for _ in range(120):
            for replica in self.replicas:
                with contextlib.suppress(OSError):
                    if await asyncio.to_thread(replica.metric, "finetune_leader") == 1:
                        passes = round(await asyncio.to_thread(replica.passes))
                        return Reading(replica.component.pid, anonymous_mib(replica.component.pid), passes)
            await asyncio.sleep(1)
        raise RuntimeError("nobody leads")

    async def _ask(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        """A request of the user's, repeated while the API server is away."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.request(method, path, **rest) as answer:
                    text = await answer.text()
                    if answer.status in (404, 409) and method != "GET":
                        return {}
                    if answer.status < 300:
                        return json.loads(text) if text.startswith("{") else {}
                    if answer.status in (400, 422):  # one that is coming up may say 401 or 403
                        raise RuntimeError(text)
            await asyncio.sleep(0.5)


def _restless(jobs: list[dict[str, Any]]) -> list[str]:
    for_sure = []
    for job in jobs:
        found = {each["type"]: each for each in job.get("status", {}).get("conditions", ())}
        seen = job.get("status", {}).get("observedGeneration") == job["metadata"]["generation"]
        rests = any(found.get(kind, {}).get("status") == "True" for kind in ("Ready", "Stalled"))
        if not (seen and rests):
            reason = found.get("Ready", {}).get("reason", "Unseen")
            for_sure.append(f"{job['metadata']['name']}: {reason}")
    return for_sure


def problems(found: dict[str, Any]) -> list[str]:
    """What should not have been seen."""
    wrong = [key for key in ("restless", "orphans", "unexpected_errors", "trained_twice") if found[key]]
    grown = grew(found["memory"])
    return [*(f"{key}: {found[key]}" for key in wrong), *([grown] if grown else [])]


def anonymous_mib(process: int) -> float:
    """Resident memory that is no file's."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


async def soak(plane: ControlPlane, folder: Path, seed: int, times: Times) -> dict[str, Any]:
    async with session_to(plane) as session:
        setting = Soak(plane, folder, session, seed, times)
        try:
            return await setting.go_on()
        finally:
            for replica in setting.replicas:
                replica.kill()


def main() -> None:
    """Prints what was seen as JSON; exit code 1 when something of it should not have been."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    seconds, seed = (os.environ.get(f"FINETUNE_SOAK_{name}") for name in ("SECONDS", "SEED"))
    parser.add_argument("--seconds", type=float, default=float(seconds or 1800), help="(FINETUNE_SOAK_SECONDS)")
    parser.add_argument("--seed", type=int, default=int(seed or time.time()), help="(FINETUNE_SOAK_SEED)")
    parser.add_argument("--hard", type=float, default=0.5, help="the share of it in which no replica is spared")
    arguments = parser.parse_args()
    times = Times(arguments.seconds, arguments.seconds * arguments.hard)
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} seconds", flush=True)
    with tempfile.TemporaryDirectory(prefix="finetune-soak-") as folder:
        plane = start_control_plane()
        try:
            start_controller_manager(plane, *QUICK)
            install_crd(plane)
            for name in (NAMESPACE, HOME):
                plane.kubectl.make_namespace(name)
            found = asyncio.run(soak(plane, Path(folder), arguments.seed, times))
        finally:
            plane.stop()
    print(json.dumps({"machine": machine(), "seed": arguments.seed, **found}, indent=1))
    if wrong := problems(found):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
