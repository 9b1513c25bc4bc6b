"""Whether a token is of the present time is asked of the clock that made it, and a minute is forgiven."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from tests.unit.test_control_receiver import AUDIENCE, ISSUER, KEY, Keys

from finetune_operator.control.tokens import PodIdentity, TokenRefusedError, TokenVerifier

MADE = 1_600_000_000  # long ago, by the clock of the machine on which this runs
POD = {"namespace": "team-a", "pod": {"name": "p", "uid": "u"}}


def token(**claims: Any) -> str:
    given = {"iss": ISSUER, "aud": [AUDIENCE], "sub": "x", "iat": MADE, "exp": MADE + 600, "kubernetes.io": POD}
    return jwt.encode({**given, **claims}, KEY, algorithm="RS256", headers={"kid": "k"})


async def verify(text: str, now: float) -> PodIdentity:
    verifier = TokenVerifier(Keys(), AUDIENCE, ISSUER, now=lambda: datetime.fromtimestamp(now, UTC))  # type: ignore[arg-type]
    return await verifier.verify(text)


@pytest.mark.parametrize("seconds", [-59, 0, 300, 659])
async def test_clocks_may_differ_by_a_minute(seconds: int) -> None:
    assert await verify(token(nbf=MADE), MADE + seconds) == PodIdentity("team-a", "p", "u")


@pytest.mark.parametrize(
    ("claims", "seconds", "why"),
    [
        ({}, -61, "not valid yet"),
        ({"nbf": MADE + 300}, 200, "not valid yet"),
        ({}, 661, "expired"),
        ({"exp": "never"}, 0, "its times are none"),
        ({"exp": None}, 0, "MissingRequiredClaim"),
        ({"exp": float("nan")}, 0, "expired"),
        ({"iat": float("nan")}, 0, "not valid yet"),
    ],
)
async def test_a_token_of_another_time_proves_nothing(claims: dict[str, Any], seconds: int, why: str) -> None:
    with pytest.raises(TokenRefusedError, match=why):
        await verify(token(**claims), MADE + seconds)
