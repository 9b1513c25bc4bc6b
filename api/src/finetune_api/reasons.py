"""Why something does not go on: all that is known of a reason, in one row.

A new reason is a word in `FailureReason` and a row here. Who acts on it (the Jobs' `podFailurePolicy`, the status, the
command line's exit code, the reference) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.base import Named
from finetune_api.conditions import ExitCode
from finetune_api.conditions import FailureReason as Reason


class Blame(Named):
    """Who has to look first."""

    INPUT = "Input"  # the author of the job: the specification, the data, the model or a token must change
    TRAINING = "Training"  # the author of the job: the training itself went wrong
    CLUSTER = "Cluster"  # who runs the cluster or the namespace


@dataclass(frozen=True, slots=True)
class ReasonFacts:
    """One row. `waits`: it is said while it lasts and may right itself; otherwise it ends the run. `exit_code`: by
    which a stage that leaves no words of its own means this reason."""

    blame: Blame
    meaning: str
    advice: str
    waits: bool = False
    exit_code: int | None = None


REASONS: dict[Reason, ReasonFacts] = {
    Reason.DATASET_INVALID: ReasonFacts(
        Blame.INPUT,
        "The data has errors, or too much of it would be cut; the lines are in the status.",
        "Correct the lines named in status.run.dataset.problems and apply the job again; if only the file changed, "
        "set a new spec.rerunToken.",
    ),
    Reason.MODEL_ACCESS: ReasonFacts(
        Blame.INPUT,
        "The hub refuses the model: no such model, a licence to accept, or a wrong token.",
        "Check the source and revision, accept the model's licence on its hub, and put a token that may read it "
        "into the Secret named in baseModel.secretRef; then set a new spec.rerunToken.",
    ),
    Reason.MODEL_INVALID: ReasonFacts(
        Blame.INPUT,
        "The folder is no model that can be tuned, or it has no safetensors weights.",
        "Use a folder in Hugging Face format with config.json, a tokenizer and safetensors weights; if only the files "
        "changed, set a new spec.rerunToken.",
    ),
    Reason.SOURCE_UNAVAILABLE: ReasonFacts(
        Blame.INPUT,
        "A source cannot be read: not found, not allowed, not reachable, or too large.",
        "Check that the source exists and that the Secret in secretRef may read it, then set a new spec.rerunToken.",
    ),
    Reason.SOURCE_UNSTEADY: ReasonFacts(
        Blame.INPUT,
        "A look at the data found another version each time that it asked: no run begins by that.",
        "Wait until it is written whole: it is looked at again later. Where a server names another version at each "
        "request, use triggers.schedule in place of triggers.datasetPoll.",
    ),
    Reason.SPEC_INVALID: ReasonFacts(
        Blame.INPUT,
        "The specification cannot be carried out as it stands.",
        "Change the field that the message names and apply the job again.",
        exit_code=ExitCode.USER_INPUT,
    ),
    Reason.DESTINATION_REFUSED: ReasonFacts(
        Blame.INPUT,
        "A registry, bucket or tracker does not take it: wrong credentials, no such bucket, or its place is taken.",
        "Correct output.exports, tracking or the Secret that is named there; it is tried again each hour, and at once "
        "when the Package Job is deleted.",
    ),
    Reason.EXPORT_UNSUPPORTED: ReasonFacts(
        Blame.INPUT,
        "This model cannot be exported in the format that was asked for.",
        "Choose another format in output.exports, or remove the export.",
    ),
    Reason.BASE_NOT_PROMOTED: ReasonFacts(
        Blame.INPUT,
        "The run of another job that this one goes on from is not there, or not promoted yet.",
        "Nothing, if that job is under way: this one begins by itself when it is promoted. Otherwise apply that job, "
        "or correct baseModel.fineTuneJob.",
        waits=True,
    ),
    Reason.BUDGET_EXCEEDED: ReasonFacts(
        Blame.INPUT,
        "The run has used its `budget`, or its training is estimated at more.",
        "Raise budget.maxGpuHours or budget.maxCost to go on, from the checkpoint where there is one; or train less: "
        "fewer epochs or examples.",
        waits=True,
    ),
    Reason.PRICE_MISSING: ReasonFacts(
        Blame.INPUT,
        "`budget.maxCost` cannot be kept, because the platform has no price for the job's GPUs.",
        "Use budget.maxGpuHours, or ask who runs the operator for a price of these GPUs (`prices` of its chart).",
        waits=True,
    ),
    Reason.SCHEDULE_INVALID: ReasonFacts(
        Blame.INPUT,
        "`spec.triggers.schedule` names a time zone that is not known, or times that never come.",
        "Correct the field that the condition Scheduled names; times are counted from then on.",
    ),
    Reason.CUDA_OUT_OF_MEMORY: ReasonFacts(
        Blame.TRAINING,
        "The GPU's memory does not suffice, even with a halved micro batch.",
        "Lower hyperparameters.maxLength, set method.type to QLoRA, raise compute.gpus, or select a GPU with more "
        "memory by compute.nodeSelector; with compute.gpuMemory Prepare says beforehand what would fit.",
        exit_code=ExitCode.GPU_OUT_OF_MEMORY,
    ),
    Reason.LOSS_NOT_FINITE: ReasonFacts(
        Blame.TRAINING,
        "The training diverged.",
        "Lower hyperparameters.learningRateMultiplier, and look for broken examples in the data.",
        exit_code=ExitCode.LOSS_NOT_FINITE,
    ),
    Reason.ARTIFACT_INVALID: ReasonFacts(
        Blame.TRAINING,
        "The trained model failed its verification, or files on the volume were changed.",
        "Set a new spec.rerunToken to make the files anew; if it comes back, check the storage behind "
        "output.claimName.",
        exit_code=ExitCode.ARTIFACT_INVALID,
    ),
    Reason.OUT_OF_MEMORY: ReasonFacts(
        Blame.TRAINING,
        "A container passed its memory limit.",
        "Raise compute.resources.limits.memory (serving.resources.limits.memory for a server), or lower "
        "hyperparameters.maxLength.",
    ),
    Reason.UNSCHEDULABLE: ReasonFacts(
        Blame.CLUSTER,
        "No node fits.",
        "Lower the requests in compute or serving, change nodeSelector and tolerations, or add a node.",
        waits=True,
    ),
    Reason.IMAGE_PULL: ReasonFacts(
        Blame.CLUSTER,
        "An image cannot be pulled.",
        "Check the image and the pull secrets in the operator's chart values, and that the nodes reach the registry.",
        waits=True,
    ),
    Reason.STORAGE_UNBOUND: ReasonFacts(
        Blame.CLUSTER,
        "A PersistentVolumeClaim does not exist or is not bound.",
        "Create the PersistentVolumeClaim that the message names, or give it a StorageClass that can provide a "
        "volume on these nodes.",
        waits=True,
    ),
    Reason.STORAGE_FULL: ReasonFacts(
        Blame.CLUSTER,
        "The volume is full.",
        "Enlarge the run's claim, or delete old runs from it: the stage is tried again by itself, at intervals that "
        "grow to ten minutes, and goes on from its last checkpoint. A run that has ended for it needs a new "
        "spec.rerunToken.",
        waits=True,
        exit_code=ExitCode.STORAGE_FULL,
    ),
    Reason.DESTINATION_UNAVAILABLE: ReasonFacts(
        Blame.CLUSTER,
        "A registry, S3 server or tracker cannot be reached, or fails.",
        "See that the package pod reaches the destination (NetworkPolicy, proxy, DNS, certificate); it is tried again "
        "each hour, and at once when the Package Job is deleted.",
    ),
    Reason.CONFIG_MISSING: ReasonFacts(
        Blame.CLUSTER,
        "A Secret or ConfigMap that the job names does not exist.",
        "Create the Secret or ConfigMap that the message names in the job's namespace, or correct its name in the job.",
        waits=True,
    ),
    Reason.CONFIG_UNREADABLE: ReasonFacts(
        Blame.CLUSTER,
        "A run's snapshot (run.json) was written by a version that this one cannot read.",
        "Use the version of operator and trainer image that wrote the snapshot, or set a new spec.rerunToken to "
        "train a run of this version.",
    ),
    Reason.EVICTED: ReasonFacts(
        Blame.CLUSTER,
        "The node puts the pod out.",
        "Set requests in compute.resources (memory, ephemeral-storage) to what the stage really uses, so that the "
        "node keeps room for it.",
        waits=True,
    ),
    Reason.INTERRUPTED: ReasonFacts(
        Blame.CLUSTER,
        "The pod was interrupted and starts again from its checkpoint.",
        "Nothing to do: the stage goes on from its last checkpoint as soon as a pod can run.",
        waits=True,
        exit_code=ExitCode.INTERRUPTED,
    ),
    Reason.NODE_LOST: ReasonFacts(
        Blame.CLUSTER,
        "The pod's node does not answer.",
        "It goes on when the node answers: nothing starts beside a pod that may still run there. If that machine is "
        "off for good, say so: kubectl taint nodes NODE node.kubernetes.io/out-of-service=off:NoExecute.",
        waits=True,
    ),
    Reason.DEADLINE_EXCEEDED: ReasonFacts(
        Blame.TRAINING,
        "The training took longer than `compute.activeDeadlineSeconds`.",
        "Raise compute.activeDeadlineSeconds, or train less: fewer epochs or examples.",
    ),
    Reason.QUOTA_EXCEEDED: ReasonFacts(
        Blame.CLUSTER,
        "The namespace's quota leaves no room.",
        "Free some of the namespace's ResourceQuota or ask for a larger one; the operator keeps trying.",
        waits=True,
    ),
    Reason.POD_REFUSED: ReasonFacts(
        Blame.CLUSTER,
        "The cluster admits no such pod: a LimitRange, Pod Security or a webhook.",
        "Change in the job what the message names, or ask who runs the cluster to admit such pods; the Job "
        "controller keeps trying.",
        waits=True,
    ),
    Reason.QUEUED: ReasonFacts(
        Blame.CLUSTER,
        "The queue has not admitted the stage yet.",
        "Nothing to do: it starts, or goes on from its checkpoint, as soon as the queue has room.",
        waits=True,
    ),
    Reason.QUEUE_UNAVAILABLE: ReasonFacts(
        Blame.CLUSTER,
        "The queue does not exist, is stopped, or can never hold the stage.",
        "Name a queue in compute.queueName that exists, is not stopped, and has the quota for compute.",
        waits=True,
    ),
    Reason.JOB_SUSPENDED: ReasonFacts(
        Blame.CLUSTER,
        "Somebody else suspended the stage's Job.",
        "Let the Job go on (spec.suspend: false in the Job); to suspend a FineTuneJob, set its own spec.suspend.",
        waits=True,
    ),
    Reason.NAME_CONFLICT: ReasonFacts(
        Blame.CLUSTER,
        "An object of the name that is needed belongs to somebody else.",
        "Delete or rename the object that the message names, or give the job another name.",
        waits=True,
    ),
    Reason.FORMER_POD: ReasonFacts(
        Blame.CLUSTER,
        "A pod that an earlier Job left still runs and may write to the run's folder.",
        "It has its grace period to save a checkpoint; one whose Job was deleted with --cascade=orphan runs to its end "
        "or until kubectl delete pod NAME. If its node is lost for good, add --force --grace-period=0.",
        waits=True,
    ),
    Reason.NOT_READY: ReasonFacts(
        Blame.CLUSTER,
        "The server does not become ready.",
        "Read the log of the server's pod; if it needs more memory, raise serving.resources, if it needs longer, "
        "serving.progressDeadlineSeconds.",
        waits=True,
    ),
    Reason.SMOKE_FAILED: ReasonFacts(
        Blame.TRAINING,
        "A new server runs, but its answer to the smoke test will not do.",
        "Ask the model yourself (finetune chat); correct serving.smokeTest or train anew. The same run is tried again "
        "when serving changes or serving.run names it.",
    ),
    Reason.RUN_NOT_FOUND: ReasonFacts(
        Blame.INPUT,
        "`serving.run` names a run that has no model.",
        "Set serving.run to a run that made a model (see status.runs), or remove it.",
    ),
    Reason.SYSTEM_FAULT: ReasonFacts(
        Blame.CLUSTER,
        "A stage failed for a reason of its own, and the retries are used up.",
        "Read the log of the stage's pod; set a new spec.rerunToken to try again.",
    ),
}

EXIT_REASONS = {facts.exit_code: reason for reason, facts in REASONS.items() if facts.exit_code is not None}
FINAL_CODES = tuple(code for code, reason in EXIT_REASONS.items() if not REASONS[reason].waits)
"""Exit codes after which the same pod would fail again: the Job ends with the first."""
AGAIN_CODES = tuple(code for code, reason in EXIT_REASONS.items() if REASONS[reason].waits)
"""Exit codes after which the next pod may fare better: the Job goes on, and does not count them."""
INPUT_REASONS = frozenset(reason for reason, facts in REASONS.items() if facts.blame is Blame.INPUT and not facts.waits)
"""What the author of the job has to change, as opposed to what went wrong while running. What waits is none of them: a
budget that is used up, or a base that is not promoted yet, makes no input wrong."""
