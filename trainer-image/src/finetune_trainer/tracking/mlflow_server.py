"""MLflow, by its own client. https://mlflow.org/docs/latest/rest-api.html"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune_api.conditions import FailureReason
from finetune_api.tracking import MlflowSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.packaging.credentials import CA, in_environment, refused, trusted
from finetune_trainer.tracking.story import Story

METRICS, PARAMETERS = 1000, 100  # of one request, by the server's own bounds
LONGEST = 500  # characters of a parameter that every server takes
ID = "finetune-operator.io/id"
DENIED = ("401", "403", "PERMISSION_DENIED", "UNAUTHENTICATED")
# Of a request; the Job's retries begin again.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def track(spec: MlflowSpec, story: Story, secret: Mapping[str, str], experiment: str, key: str) -> str:
    """The run's address. A run of the same `key` that is whole is found again; half of one is removed.

    Raises UserInputError (DestinationRefused), or TrainerError (DestinationUnavailable), which is tried again.
    """
    with _settings(spec, secret):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=spec.uri)
        try:
            place = _experiment(client, spec.experiment or experiment)
            run = _found(client, place, key) or _written(client, place, story, key)
        except MlflowException as error:
            raise _explained(spec.uri, error) from error
    return f"{spec.uri.rstrip('/')}/#/experiments/{place}/runs/{run}"


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _found(client: Any, experiment: str, key: str) -> str | None:
    whole = None
    for run in client.search_runs([experiment], filter_string=f"tags.`{ID}` = '{key}'"):
        if run.info.status == "FINISHED":
            whole = str(run.info.run_id)
        else:
            client.delete_run(run.info.run_id)
    return whole


def _written(client: Any, experiment: str, story: Story, key: str) -> str:
    from mlflow.entities import Metric, Param

    tags = {**story.tags, ID: key}
    run = client.create_run(experiment, start_time=_ms(story.started), run_name=story.name, tags=tags)
    number = str(run.info.run_id)
    metrics = [
        Metric(name, value, _ms(point.time), point.step)
        for point in story.points
        for name, value in point.values.items()
    ]
    last = story.points[-1].step if story.points else 0
    metrics += [Metric(name, value, _ms(story.ended), last) for name, value in story.results.items()]
    parameters = [Param(name, value[:LONGEST]) for name, value in story.parameters.items()]
    for begin in range(0, len(metrics), METRICS):
        client.log_batch(number, metrics=metrics[begin : begin + METRICS])
    for begin in range(0, len(parameters), PARAMETERS):
        client.log_batch(number, params=parameters[begin : begin + PARAMETERS])
    client.set_terminated(number, "FINISHED", _ms(story.ended))  # last: what is not finished is not whole
    return number


@contextmanager
def _settings(spec: MlflowSpec, secret: Mapping[str, str]) -> Iterator[None]:
    """The client reads its login from the environment alone."""
    own = {name: value for name, value in secret.items() if name.startswith("MLFLOW_TRACKING_")}
    with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
        if CA in secret:
            trusted(secret, spec.uri)
            file.write(secret[CA])
            file.flush()
            own["MLFLOW_TRACKING_SERVER_CERT_PATH"] = file.name
        with in_environment({**PATIENCE, **own}):
            yield


def _explained(uri: str, error: Exception) -> TrainerError:
    text = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
    if any(word in text for word in DENIED):
        return refused(
            f"{uri}: access was refused ({text})", "check MLFLOW_TRACKING_TOKEN, or name and password, in the Secret"
        )
    code = str(getattr(error, "error_code", ""))
    if code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"):
        return refused(f"{uri}: {text}", "correct tracking.mlflow")
    return TrainerError(
        f"{uri}: {text}",
        advice="it is tried again; see that the package pod can reach the tracking server",
        reason=FailureReason.DESTINATION_UNAVAILABLE,
    )


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
