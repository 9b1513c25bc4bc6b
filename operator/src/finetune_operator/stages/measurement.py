"""By which settings a run was measured. Other ones act on what is there: another measurement, no other run."""

from __future__ import annotations

from finetune_api.conditions import Stage
from finetune_api.job import evaluation_hash
from finetune_api.status import RunStatus
from finetune_operator import names
from finetune_operator.builders.run_config_map import parse_run_config
from finetune_operator.plan import Manifest
from finetune_operator.runs import is_done, with_time, without_time
from finetune_operator.stages.view import View


def with_measurement(view: View, run: RunStatus) -> RunStatus:
    """The run, with Evaluate open again while its figures are by other settings than the wanted ones.

    They stay in the status until there are others, and with them verdict and model. Back at their settings they count
    again, whatever became of the other measurement."""
    if run.evaluation is None:
        return run
    measured = run.evaluation.settings_hash or _snapshot(view, run)
    run = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"settings_hash": measured})})
    if measured != _wanted(view):
        return without_time(without_time(run, Stage.EVALUATE), Stage.JUDGE) if is_done(run, Stage.EVALUATE) else run
    if is_done(run, Stage.EVALUATE):
        return run
    other = run.failure is not None and run.failure.stage in (Stage.EVALUATE, Stage.JUDGE)
    run = run.model_copy(update={"failure": None}) if other else run
    if run.evaluation and run.evaluation.judge:
        run = with_time(run, Stage.JUDGE, completion=view.time)
    return with_time(run, Stage.EVALUATE, completion=view.time)


def is_measured(view: View, run: RunStatus) -> bool:
    """Whether all is there that the gate judges by."""
    return is_done(run, Stage.EVALUATE) and (view.job.spec.evaluation.judge is None or is_done(run, Stage.JUDGE))


def measures_otherwise(view: View, run: RunStatus, job: Manifest) -> bool:
    """Whether this is a Job of Evaluate or Judge by settings that are no longer wanted."""
    if names.label(job, names.LABEL_STAGE) not in (Stage.EVALUATE.value, Stage.JUDGE.value):
        return False
    return (names.annotation(job, names.ANNOTATION_EVALUATION_HASH) or _snapshot(view, run)) != _wanted(view)


def _wanted(view: View) -> str:
    return evaluation_hash(view.job.spec.evaluation)


def _snapshot(view: View, run: RunStatus) -> str:
    """What an operator measured by that kept no hash: the settings of the run's beginning. Where nobody knows them
    any more, the present ones are meant: an upgrade must not measure all models of a cluster anew."""
    config = parse_run_config(view.observed.config_maps.get(names.run_name(view.job.metadata.name, run.number)))
    return evaluation_hash(config.evaluation) if config else _wanted(view)
