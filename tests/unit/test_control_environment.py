"""Environment variables, declared rights, and logs that machines can read."""

from __future__ import annotations

import json
import logging
import re
from decimal import Decimal
from pathlib import Path

import pytest

from finetune_operator.control.environment import EnvironmentInvalidError, read_environment
from finetune_operator.control.logs import JsonFormatter
from finetune_operator.control.permissions import WATCHED_NAMESPACES, own_namespace
from finetune_operator.prices import Prices
from finetune_operator.settings import Settings

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
ENVIRONMENT = Path(__file__).resolve().parents[2] / "operator/src/finetune_operator/control/environment.py"


def test_nothing_set_is_the_default() -> None:
    environment = read_environment({})
    assert environment.settings == Settings()
    assert environment.lease is None
    assert environment.tls is None
    assert environment.watch_namespaces == ()


def test_the_charts_variables_are_read(tmp_path: Path) -> None:
    for part in ("cert", "key", "ca"):
        (tmp_path / part).write_text(part)
    environment = read_environment(
        {
            "FINETUNE_TRAINER_IMAGE": "example.com/trainer:1",
            "FINETUNE_WATCH_NAMESPACES": "team-a, team-b,",
            "FINETUNE_HTTPS_HOSTS": "a.example.com,*.example.org",
            "FINETUNE_PROGRESS_URL": "https://progress.svc:8443/",
            "FINETUNE_PROGRESS_CERT": str(tmp_path / "cert"),
            "FINETUNE_PROGRESS_KEY": str(tmp_path / "key"),
            "FINETUNE_PROGRESS_CA": str(tmp_path / "ca"),
            "FINETUNE_IMAGE_PULL_SECRETS": "pull",
            "FINETUNE_SOURCES_ENV": '{"NO_PROXY": "a,b", "HF_ENDPOINT": "https://hub.example.com"}',
            "POD_NAMESPACE": "system",
            "POD_NAME": "operator-1",
            "POD_IP": "fd00::1",
            "FINETUNE_LEASE_SECONDS": "30",
            "FINETUNE_SERVER_ROLLOUTS": "3",
            "FINETUNE_PRICES": '{"currency":"EUR","gpuHour":{"NVIDIA-H100":"4.20","default":2.5,"nvidia.com/gpu":0}}',
        }
    )
    assert environment.settings.prices == Prices(
        "EUR", {"NVIDIA-H100": Decimal("4.20"), "default": Decimal("2.5"), "nvidia.com/gpu": Decimal(0)}
    )
    assert environment.watch_namespaces == ("team-a", "team-b")
    assert environment.settings.trainer_image == "example.com/trainer:1"
    assert environment.settings.source_policy.https_hosts == ["a.example.com", "*.example.org"]
    assert (environment.settings.progress_url, environment.settings.progress_ca) == ("https://progress.svc:8443", "ca")
    assert environment.settings.image_pull_secrets == ("pull",)
    assert environment.settings.server_rollouts == 3
    assert dict(environment.settings.source_env) == {"HF_ENDPOINT": "https://hub.example.com", "NO_PROXY": "a,b"}
    lease = environment.lease
    assert lease
    assert (lease.namespace, lease.identity, lease.address) == ("system", "operator-1", "[fd00::1]:8443")
    assert lease.retry_seconds < lease.renew_seconds < lease.duration_seconds == 30


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FINETUNE_CONCURRENCY", "many"),
        ("FINETUNE_CONCURRENCY", "0"),
        ("FINETUNE_RESYNC_SECONDS", "nan"),
        ("FINETUNE_SERVER_ROLLOUTS", "-1"),
        ("FINETUNE_LOG_FORMAT", "xml"),
        ("FINETUNE_LOG_LEVEL", "loud"),
        ("FINETUNE_ALLOW_PRIVATE_ADDRESSES", "yes"),
        ("FINETUNE_PROGRESS_CERT", "/does/not/exist"),
        ("FINETUNE_PROGRESS_URL", "https://x"),
        ("FINETUNE_SOURCES_ENV", "HF_ENDPOINT=x"),
        ("FINETUNE_SOURCES_ENV", '["x"]'),
        ("FINETUNE_SOURCES_ENV", '{"NUMBER": 1}'),
        ("FINETUNE_PRICES", "2.50"),
        ("FINETUNE_PRICES", "{"),
        ("FINETUNE_PRICES", '{"currency": "EUR", "price": 1}'),
        ("FINETUNE_PRICES", '{"currency": "EUR", "gpuHour": [1]}'),
        ("FINETUNE_PRICES: currency", '{"gpuHour": {"default": 1}}'),
        ("FINETUNE_PRICES: currency", '{"currency": "euro", "gpuHour": {"default": 1}}'),
        ("FINETUNE_PRICES: gpuHour.default", '{"currency": "EUR", "gpuHour": {"default": -1}}'),
        ("FINETUNE_PRICES: gpuHour.default", '{"currency": "EUR", "gpuHour": {"default": "cheap"}}'),
        ("FINETUNE_PRICES: gpuHour.default", '{"currency": "EUR", "gpuHour": {"default": NaN}}'),
        ("FINETUNE_PRICES: gpuHour.default", '{"currency": "EUR", "gpuHour": {"default": true}}'),
        ("FINETUNE_PRICES: gpuHour.default", '{"currency": "EUR", "gpuHour": {"default": 1e-7}}'),
        ("FINETUNE_PRICES: gpuHour.a b", '{"currency": "EUR", "gpuHour": {"a b": 1}}'),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(EnvironmentInvalidError, match=name):
        read_environment({name.partition(":")[0]: value})


def test_every_variable_is_documented() -> None:
    used = set(re.findall(r'"((?:FINETUNE|POD|KUBECONFIG)[A-Z_]*)"', ENVIRONMENT.read_text()))
    text = OPERATIONS.read_text()
    assert {name for name in used if f"`{name}`" not in text} == set()


def test_rights_have_no_secrets_no_wildcards_and_no_pods_to_make() -> None:
    for permission in (*WATCHED_NAMESPACES, *own_namespace()):
        assert "*" not in (permission.group, permission.resource, *permission.verbs)
        assert permission.resource != "secrets"
        assert permission.why
        if permission.resource.startswith("pods"):
            assert set(permission.verbs) <= {"get", "list", "watch"}


def test_no_text_in_a_message_passes_for_the_time_or_the_level_of_its_line() -> None:
    text = "answer: time=never level=DEBUG message=gone"
    line = json.loads(JsonFormatter().format(logging.LogRecord("x", logging.ERROR, "f", 1, text, (), None)))
    assert (line["level"], line["message"]) == ("ERROR", text)
    assert line["time"].startswith("20")


def test_json_logs_carry_the_pairs_of_a_message() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "job=%s run=%d error=%r", ("a/b", 3, "it broke"), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["job"], line["run"], line["error"], line["level"]) == ("a/b", "3", "it broke", "INFO")
