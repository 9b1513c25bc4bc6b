"""Who sends a progress report: projected service account tokens, checked against the cluster's published keys.

No TokenReview: the operator needs no right to ask about arbitrary tokens, and a report costs no request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from finetune_operator.control.api_client import Api, ApiError

ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]  # what a cluster signs with; never HS* or none
REFRESH_SECONDS = 30.0  # at most so often the keys are fetched for a key id that nobody knows
MAX_TOKEN_BYTES = 16 * 1024
LEEWAY_SECONDS = 60.0  # as the API server itself has it: several of them need not agree to the second


class TokenRefusedError(Exception):
    """The token proves nothing; the text says why, without quoting it."""


class KeysUnavailableError(Exception):
    """The cluster's keys could not be fetched."""


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


class TokenVerifier:
    """Verifies tokens for one audience. `now` is the time by which they begin and end: that of the API server, which
    made them, not of a clock of ours that may be wrong."""

    def __init__(
        self,
        api: Api,
        audience: str,
        issuer: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._audience = audience
        self._issuer = issuer
        self._clock = clock
        self._now = now
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> PodIdentity:
        """The pod that the token is bound to. Raises TokenRefusedError, KeysUnavailableError."""
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenRefusedError("too long")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise TokenRefusedError("not a JSON Web Token") from None
        key = await self._key(str(header.get("kid", "")))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp", "iat", "aud", "iss", "sub"],
                    "verify_exp": False,  # by whose clock, see below
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except jwt.PyJWTError as error:
            raise TokenRefusedError(type(error).__name__) from None
        _check_times(claims, self._now().timestamp())
        return _pod(claims)

    async def _key(self, kid: str) -> jwt.PyJWK:
        if kid not in self._keys:
            async with self._lock:
                if kid not in self._keys and self._clock() - self._fetched >= REFRESH_SECONDS:
                    await self._fetch()
        if not self._keys:
            raise KeysUnavailableError("not fetched yet")
        if kid not in self._keys:
            raise TokenRefusedError("signed with a key that is not the cluster's")
        return self._keys[kid]

    async def _fetch(self) -> None:
        self._fetched = self._clock()
        try:
            if self._issuer is None:
                found = await self._api.request("GET", "/.well-known/openid-configuration", "openid")
                self._issuer = str(found["issuer"])
            listed = await self._api.request("GET", "/openid/v1/jwks", "openid")
            keys = jwt.PyJWKSet.from_dict(listed)
        except (ApiError, KeyError, jwt.PyJWTError) as error:
            raise KeysUnavailableError(str(error)) from error
        self._keys = {key.key_id: key for key in keys.keys if key.key_id}


def _check_times(claims: dict[str, Any], now: float) -> None:
    try:
        begins, ends = float(claims.get("nbf", claims["iat"])), float(claims["exp"])
    except (TypeError, ValueError):
        raise TokenRefusedError("its times are none") from None
    if not now < ends + LEEWAY_SECONDS:
        raise TokenRefusedError("expired")
    if not now >= begins - LEEWAY_SECONDS:
        raise TokenRefusedError("not valid yet")


def _pod(claims: dict[str, Any]) -> PodIdentity:
    bound = claims.get("kubernetes.io")
    pod = bound.get("pod") if isinstance(bound, dict) else None
    if not isinstance(bound, dict) or not isinstance(pod, dict):
        raise TokenRefusedError("not bound to a pod")
    return PodIdentity(str(bound.get("namespace", "")), str(pod.get("name", "")), str(pod.get("uid", "")))
