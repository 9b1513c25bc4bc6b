"""Everything the chart decides, read once from environment variables. docs/operations.md lists them."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from finetune_api.run_config import SourcePolicy
from finetune_operator.prices import Prices, read_prices
from finetune_operator.settings import Settings

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, token


class EnvironmentInvalidError(Exception):
    """An environment variable cannot be used; the text names it and says what it must be."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the progress receiver's certificate. `ca` is also what the training pods trust."""

    cert: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class LeaseNames:
    """Where the Lease of the leader is, and who we are."""

    namespace: str
    name: str
    identity: str
    address: str = ""  # our own, for followers that pass progress on
    duration_seconds: float = 15.0  # after this silence another replica takes over
    renew_seconds: float = 10.0  # without a renewal for so long the leader stops by itself
    retry_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where traces go: the whole URL, headers (which may hold a password), and the share of passes that are traced."""

    endpoint: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    sampling: float = 1.0
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process is told from outside."""

    settings: Settings = field(default_factory=Settings)
    watch_namespaces: tuple[str, ...] = ()
    kubeconfig: str | None = None
    concurrency: int = 20  # passes at the same time; more do not help one Python core
    resync_seconds: float = 300.0
    api_qps: float = 0.0  # 0: no limit of our own; the API server has priority and fairness
    api_burst: int = 100
    request_seconds: float = 20.0
    health_port: int = 8080
    health_host: str = "0.0.0.0"
    progress_port: int = 8443
    progress_host: str = "0.0.0.0"
    tls: Tls | None = None
    token_issuer: str | None = None
    lease: LeaseNames | None = None
    traces: TraceSettings | None = None
    log_format: str = "text"
    log_level: str = "INFO"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in text.split(",")) if word)


def _number(values: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = values.get(name, "").strip()
    try:
        number = float(text) if text else default
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise EnvironmentInvalidError(f"{name}={text!r}: write a number from {low:g} to {high:g}")
    return number


def _switch(values: Mapping[str, str], name: str) -> bool:
    text = values.get(name, "").strip().lower()
    if text not in ("", "true", "false"):
        raise EnvironmentInvalidError(f"{name}={text!r}: write true or false")
    return text == "true"


def _pairs(values: Mapping[str, str], name: str) -> tuple[tuple[str, str], ...]:
    text = values.get(name, "").strip()
    try:
        pairs = json.loads(text) if text else {}
    except ValueError:
        pairs = None
    if not isinstance(pairs, dict) or not all(isinstance(value, str) for value in pairs.values()):
        raise EnvironmentInvalidError(
            f'{name}={text!r}: write a JSON object of texts, {{"HF_ENDPOINT": "https://..."}}'
        )
    return tuple(sorted(pairs.items()))


def _prices(values: Mapping[str, str], name: str) -> Prices:
    text = values.get(name, "").strip()
    try:
        return read_prices(text) if text else Prices()
    except ValueError as error:
        raise EnvironmentInvalidError(f"{name}: {error}") from None


def _file(values: Mapping[str, str], name: str) -> Path:
    path = Path(values.get(name, ""))
    if not path.is_file():
        raise EnvironmentInvalidError(f"{name}={path}: no such file; mount the progress certificate there")
    return path


def _tls(values: Mapping[str, str]) -> Tls | None:
    if not values.get("FINETUNE_PROGRESS_CERT"):
        return None
    return Tls(*(_file(values, f"FINETUNE_PROGRESS_{part}") for part in ("CERT", "KEY", "CA")))


def _settings(values: Mapping[str, str], tls: Tls | None) -> Settings:
    default = Settings()
    url = values.get("FINETUNE_PROGRESS_URL", "").rstrip("/") or None
    if url and not tls:
        raise EnvironmentInvalidError("FINETUNE_PROGRESS_URL is set: FINETUNE_PROGRESS_CERT, _KEY and _CA must be too")
    return Settings(
        trainer_image=values.get("FINETUNE_TRAINER_IMAGE") or default.trainer_image,
        vllm_image=values.get("FINETUNE_VLLM_IMAGE") or default.vllm_image,
        image_pull_policy=values.get("FINETUNE_IMAGE_PULL_POLICY") or default.image_pull_policy,
        image_pull_secrets=_words(values.get("FINETUNE_IMAGE_PULL_SECRETS", "")),
        source_policy=SourcePolicy(
            https_hosts=list(_words(values.get("FINETUNE_HTTPS_HOSTS", ""))),
            allow_private_addresses=_switch(values, "FINETUNE_ALLOW_PRIVATE_ADDRESSES"),
        ),
        source_env=_pairs(values, "FINETUNE_SOURCES_ENV"),
        progress_url=url,
        progress_ca=tls.ca.read_text() if tls and url else None,
        progress_audience=values.get("FINETUNE_PROGRESS_AUDIENCE") or default.progress_audience,
        progress_interval_seconds=_number(
            values, "FINETUNE_PROGRESS_INTERVAL_SECONDS", default.progress_interval_seconds, 1, 3600
        ),
        settle_seconds=_number(values, "FINETUNE_SETTLE_SECONDS", default.settle_seconds, 0, 3600),
        run_history_limit=int(_number(values, "FINETUNE_RUN_HISTORY_LIMIT", default.run_history_limit, 1, 20)),
        server_rollouts=int(_number(values, "FINETUNE_SERVER_ROLLOUTS", default.server_rollouts, 0, 10000)),
        prices=_prices(values, "FINETUNE_PRICES"),
    )


def _lease(values: Mapping[str, str], progress_port: int) -> LeaseNames | None:
    """Leader election is on when a namespace for the Lease is known (the chart sets POD_NAMESPACE)."""
    namespace = values.get("FINETUNE_LEASE_NAMESPACE") or values.get("POD_NAMESPACE")
    if not namespace:
        return None
    duration = _number(values, "FINETUNE_LEASE_SECONDS", 15.0, 1, 300)
    address = values.get("POD_IP", "")
    return LeaseNames(
        namespace=namespace,
        name=values.get("FINETUNE_LEASE_NAME") or "finetune-operator",
        identity=values.get("POD_NAME") or socket.gethostname(),
        address=f"{f'[{address}]' if ':' in address else address}:{progress_port}" if address else "",
        duration_seconds=duration,
        renew_seconds=duration * 2 / 3,  # the proportions of client-go: 15, 10, 2
        retry_seconds=duration * 2 / 15,
    )


def _traces(values: Mapping[str, str]) -> TraceSettings | None:
    """None unless an endpoint is named."""
    text = values.get("FINETUNE_TRACES_ENDPOINT", "").strip().rstrip("/")
    if not text:
        return None
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
        raise EnvironmentInvalidError(
            "FINETUNE_TRACES_ENDPOINT: write the address of a collector, http://collector.observability:4318; "
            "a password belongs into FINETUNE_TRACES_HEADERS"
        )
    if not _can_trace():
        raise EnvironmentInvalidError(
            "FINETUNE_TRACES_ENDPOINT: OpenTelemetry is not installed: pip install 'finetune-operator[tracing]'"
        )
    return TraceSettings(
        endpoint=text if url.path.endswith("/v1/traces") else f"{text}/v1/traces",
        headers=_headers(values, "FINETUNE_TRACES_HEADERS"),
        sampling=_number(values, "FINETUNE_TRACES_SAMPLING", 1.0, 0, 1),
        instance=values.get("POD_NAME") or "",
    )


def _can_trace() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _headers(values: Mapping[str, str], name: str) -> tuple[tuple[str, str], ...]:
    """Pairs as OTEL_EXPORTER_OTLP_HEADERS has them. What is refused is not said: it may be a password."""
    pairs = [part.strip().partition("=") for part in values.get(name, "").split(",") if part.strip()]
    for header, equals, value in pairs:
        if not equals or not HEADER_NAME.fullmatch(header.strip()) or not unquote(value).strip().isprintable():
            raise EnvironmentInvalidError(f"{name}: write NAME=VALUE,NAME=VALUE; a comma in a value is %2C")
    return tuple((header.strip(), unquote(value).strip()) for header, _, value in pairs)


def read_environment(values: Mapping[str, str]) -> Environment:
    """The environment of this process. Raises EnvironmentInvalidError naming the first wrong variable."""
    tls = _tls(values)
    progress_port = int(_number(values, "FINETUNE_PROGRESS_PORT", 8443, 0, 65535))
    default = Environment()
    log_format = values.get("FINETUNE_LOG_FORMAT") or default.log_format
    if log_format not in ("text", "json"):
        raise EnvironmentInvalidError(f"FINETUNE_LOG_FORMAT={log_format!r}: write text or json")
    level = (values.get("FINETUNE_LOG_LEVEL") or default.log_level).upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise EnvironmentInvalidError(f"FINETUNE_LOG_LEVEL={level!r}: write DEBUG, INFO, WARNING or ERROR")
    return Environment(
        settings=_settings(values, tls),
        watch_namespaces=_words(values.get("FINETUNE_WATCH_NAMESPACES", "")),
        kubeconfig=values.get("KUBECONFIG") or None,
        concurrency=int(_number(values, "FINETUNE_CONCURRENCY", default.concurrency, 1, 200)),
        resync_seconds=_number(values, "FINETUNE_RESYNC_SECONDS", default.resync_seconds, 1, 86400),
        api_qps=_number(values, "FINETUNE_API_QPS", default.api_qps, 0, 10000),
        api_burst=int(_number(values, "FINETUNE_API_BURST", default.api_burst, 1, 10000)),
        request_seconds=_number(values, "FINETUNE_REQUEST_SECONDS", default.request_seconds, 1, 300),
        health_port=int(_number(values, "FINETUNE_HEALTH_PORT", default.health_port, 0, 65535)),
        health_host=values.get("FINETUNE_HEALTH_HOST") or default.health_host,
        progress_port=progress_port,
        progress_host=values.get("FINETUNE_PROGRESS_HOST") or default.progress_host,
        tls=tls,
        token_issuer=values.get("FINETUNE_TOKEN_ISSUER") or None,
        lease=_lease(values, progress_port),
        traces=_traces(values),
        log_format=log_format,
        log_level=level,
    )
