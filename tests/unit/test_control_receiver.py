"""A thousand trainer pods report at the same time, each with its own token, among others who must not be believed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.unit.test_control_cache import made

from finetune_operator import names
from finetune_operator.control.cache import Cache, Name
from finetune_operator.control.progress import ProgressReports
from finetune_operator.control.receiver import MAX_BODY_BYTES, ROUTE, Receiver
from finetune_operator.control.resources import FINE_TUNE_JOB, JOB, POD
from finetune_operator.control.tokens import TokenVerifier
from finetune_operator.control.workqueue import WorkQueue

PODS = 1000
AUDIENCE, ISSUER = "finetune-operator.io/progress", "https://kubernetes.default.svc"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Keys:
    """The cluster's published keys; counts how often they are asked for."""

    asked = 0

    async def request(self, method: str, path: str, label: str) -> dict[str, Any]:
        self.asked += 1
        public = jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": "k", "use": "sig", "alg": "RS256"}]}


def token(number: int) -> str:
    now = int(time.time())
    pod = {"name": f"pod-{number}", "uid": f"uid-pod-{number}"}
    bound = {"namespace": "team-a", "pod": pod}
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": "x", "iat": now, "exp": now + 600, "kubernetes.io": bound}
    return jwt.encode(claims, KEY, algorithm="RS256", headers={"kid": "k"})


def cluster() -> Cache:
    """As many jobs in training, each with its pod."""
    cache = Cache()
    for number in range(PODS):
        name = f"job-{number}"
        cache.store(FINE_TUNE_JOB, made(FINE_TUNE_JOB, name, uid=f"T{number}"))
        cache.store(JOB, made(JOB, f"{name}-r1-train", uid=f"J{number}", owner=f"T{number}", label=name))
        pod = made(POD, f"pod-{number}", owner=f"J{number}", label=name, kind="Job")
        pod["metadata"]["ownerReferences"][0]["name"] = f"{name}-r1-train"
        pod["metadata"]["labels"][names.LABEL_RUN] = "1"
        cache.store(POD, pod)
    return cache


def report(step: float | str) -> dict[str, Any]:
    metrics = [{"name": "current_step", "value": str(step)}, {"name": "loss", "value": "NaN"}]
    return {"trainerStatus": {"progressPercentage": 40, "metrics": metrics}}


@pytest.mark.asyncio
async def test_a_thousand_pods_report_at_once_and_each_on_its_own_job_only() -> None:
    cache, queue, keys = cluster(), WorkQueue[Name](), Keys()
    reports = ProgressReports(queue, 10)

    async def nobody(request: web.Request, body: bytes) -> int:
        raise AssertionError("the leader passes nothing on")

    verifier = TokenVerifier(keys, AUDIENCE, ISSUER)  # type: ignore[arg-type]
    receiver = Receiver(cache, reports, verifier, lambda: True, nobody)
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.add_routes([web.post(ROUTE, receiver.handle)])
    async with TestServer(application) as server, aiohttp.ClientSession() as session:

        async def post(number: int, job: int) -> int:
            url = server.make_url(f"/progress/v1alpha1/namespaces/team-a/jobs/job-{job}/runs/1")
            headers = {"Authorization": f"Bearer {token(number)}"}
            async with session.post(url, json=report(number + 1), headers=headers) as answer:
                return answer.status

        own = [post(number, number) for number in range(PODS)]
        others = [post(number, (number + 1) % PODS) for number in range(0, PODS, 20)]
        answers = await asyncio.gather(*own, *others)
    assert answers == [200] * len(own) + [403] * len(others)
    assert keys.asked == 1
    assert queue.depth == PODS, "one pass each"
    for number in range(PODS):
        found = reports.report(("team-a", f"job-{number}"))
        assert found
        assert (found.progress.step, found.progress.train_loss) == (number + 1, None)
    queue.close()
