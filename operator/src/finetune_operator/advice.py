"""One sentence of advice for every reason: what a person should do next."""

from __future__ import annotations

from itertools import pairwise

from finetune_api.conditions import FailureReason as Reason

ADVICE: dict[Reason, str] = {
    Reason.DATASET_INVALID: "Correct the lines named in status.run.dataset.problems and apply the job again; "
    "if only the file changed, set a new spec.rerunToken.",
    Reason.MODEL_ACCESS: "Check the source and revision, accept the model's licence on its hub, and put a token that "
    "may read it into the Secret named in baseModel.secretRef.",
    Reason.MODEL_INVALID: "Use a folder in Hugging Face format with config.json, a tokenizer and safetensors weights.",
    Reason.SOURCE_UNAVAILABLE: "Check that the source exists and that the Secret in secretRef may read it, then set a "
    "new spec.rerunToken.",
    Reason.SPEC_INVALID: "Change the field that the message names and apply the job again.",
    Reason.CUDA_OUT_OF_MEMORY: "Lower hyperparameters.maxLength or method.rank, or select a GPU with more memory by "
    "compute.nodeSelector.",
    Reason.LOSS_NOT_FINITE: "Lower hyperparameters.learningRateMultiplier, and look for broken examples in the data.",
    Reason.ARTIFACT_INVALID: "Set a new spec.rerunToken to make the files anew; if it comes back, check the storage "
    "behind output.claimName.",
    Reason.OUT_OF_MEMORY: "Raise compute.resources.limits.memory (serving.resources.limits.memory for a server), or "
    "lower hyperparameters.maxLength.",
    Reason.UNSCHEDULABLE: "Lower the requests in compute or serving, change nodeSelector and tolerations, "
    "or add a node.",
    Reason.IMAGE_PULL: "Check the image and the pull secrets in the operator's chart values, and that the nodes reach "
    "the registry.",
    Reason.STORAGE_UNBOUND: "Create the PersistentVolumeClaim that the message names, or give it a StorageClass that "
    "can provide a volume on these nodes.",
    Reason.STORAGE_FULL: "Enlarge the run's claim, delete old runs from it, or name another one in output.claimName; "
    "then set a new spec.rerunToken.",
    Reason.CONFIG_MISSING: "Create the Secret or ConfigMap that the message names in the job's namespace, or correct "
    "its name in the job.",
    Reason.CONFIG_UNREADABLE: "Use the version of operator and trainer image that wrote the snapshot, or set a new "
    "spec.rerunToken to train a run of this version.",
    Reason.EVICTED: "Set requests in compute.resources (memory, ephemeral-storage) to what the stage really uses, so "
    "that the node keeps room for it.",
    Reason.INTERRUPTED: "Nothing to do: the stage goes on from its last checkpoint as soon as a pod can run.",
    Reason.DEADLINE_EXCEEDED: "Raise compute.activeDeadlineSeconds, or train less: fewer epochs or examples.",
    Reason.QUOTA_EXCEEDED: "Free some of the namespace's ResourceQuota or ask for a larger one; "
    "the operator keeps trying.",
    Reason.POD_REFUSED: "Change in the job what the message names, or ask who runs the cluster to admit such pods; "
    "the Job controller keeps trying.",
    Reason.FORMER_POD: "It has its grace period to save a checkpoint. If its node is lost for good, remove it: "
    "kubectl delete pod NAME --force --grace-period=0.",
    Reason.NAME_CONFLICT: "Delete or rename the object that the message names, or give the job another name.",
    Reason.NOT_READY: "Read the log of the server's pod; if it needs longer or more memory, raise serving.resources.",
    Reason.RUN_NOT_FOUND: "Set serving.run to a run that made a model (see status.runs), or remove it.",
    Reason.SYSTEM_FAULT: "Read the log of the stage's pod; set a new spec.rerunToken to try again.",
}

OWN_LIMIT = (
    "Raise limits.ephemeral-storage in compute.resources (serving.resources for a server); /tmp is as large as that."
)


def advice_for(reason: Reason, message: str = "") -> str:
    """The sentence for the reason, sharpened where the message says more."""
    if reason is Reason.UNSCHEDULABLE:
        return _unschedulable(message)
    if reason is Reason.EVICTED and "limit" in message:  # the pod's own, not a lack of the node
        return OWN_LIMIT
    return ADVICE[reason]


def _unschedulable(message: str) -> str:
    lacking = [word.rstrip(",.") for word in _words_after(message, "Insufficient") if "/" in word]
    if lacking:
        return (
            f"No node has a free {lacking[0]}: wait for one, add a GPU node, or correct compute.gpuResource, "
            "compute.nodeSelector and compute.tolerations (compute.gpus: 0 trains on the CPU)."
        )
    if "untolerated taint" in message or "didn't match Pod's node affinity" in message:
        return "Correct nodeSelector and tolerations in compute (or serving) so that a node fits, or add such a node."
    return ADVICE[Reason.UNSCHEDULABLE]


def _words_after(text: str, marker: str) -> list[str]:
    words = text.split()
    return [after for word, after in pairwise(words) if word == marker]
