"""`docs/troubleshooting.md`: a part for each failure reason, from the same list as the code."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.conditions import FailureReason as Reason
from finetune_api.reasons import REASONS, Blame, ReasonFacts

STATUS = "kubectl get finetunejob NAME -o jsonpath='{.status.run.failure}'"
PODS = "kubectl get pods -l finetune-operator.io/job=NAME"
POD = "kubectl describe pods -l finetune-operator.io/job=NAME"
LOG = "kubectl logs -l finetune-operator.io/job=NAME,finetune-operator.io/stage={stage} --tail=-1"
STAGES = ("Prepare", "Train", "Package", "Serve")
PREPARE_LOG, TRAIN_LOG, PACKAGE_LOG, SERVE_LOG = (LOG.format(stage=stage) for stage in STAGES)
EXPORT_ONLY = "It concerns the export alone; the run stays promoted and the model goes on serving."
DATA = "kubectl get finetunejob NAME -o jsonpath='{.status.run.dataset.problems}'"
QUEUE = "kubectl get finetunejob NAME -o jsonpath='{.status.run.failure.message}'"
COST = "kubectl get finetunejob NAME -o jsonpath='{.status.run.cost}'"
SCHEDULED = "kubectl get finetunejob NAME -o jsonpath='{.status.conditions[?(@.type==\"Scheduled\")].message}'"
POLLED = "kubectl get finetunejob NAME -o jsonpath='{.status.conditions[?(@.type==\"DatasetPolled\")].message}'"
CLAIMS = "kubectl get persistentvolumeclaims"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What mostly lies behind a reason, and the command that shows it. `course`: what becomes of the job, where that
    is neither the end of the run nor waiting."""

    causes: str
    look: str
    course: str = ""


TROUBLES: dict[Reason, Trouble] = {
    Reason.DATASET_INVALID: Trouble(
        "An export that was cut off, a column of another name, an answer that is empty, a form of another task. The "
        "first lines of every kind of problem are listed, with the file; `finetune check` finds the same on a laptop.",
        DATA,
    ),
    Reason.MODEL_ACCESS: Trouble(
        "A gated model whose licence the token's owner has not accepted, a token of another account or without read "
        "rights, a misspelt name: a hub says 404 for what a token must not see.",
        PREPARE_LOG,
    ),
    Reason.MODEL_INVALID: Trouble(
        "Weights as pickles only, a model of another kind than the task asks for, a tokenizer without a chat template, "
        "a folder one level too high, an upload that is not complete.",
        PREPARE_LOG,
    ),
    Reason.SOURCE_UNAVAILABLE: Trouble(
        "A path that does not exist on the claim, a bucket of another region or endpoint, an expired key, an "
        "`https://` host that the platform does not allow (`sources.httpsHosts` of the chart), a missing proxy.",
        PREPARE_LOG,
    ),
    Reason.SOURCE_UNSTEADY: Trouble(
        "An upload or an export that is still being written; a file that a program makes anew for each request; a "
        "server whose ETag is another one each time, for files of more than 256 MiB.",
        POLLED,
        "It is said by the condition DatasetPolled. The newest run stays; the next look comes later.",
    ),
    Reason.SPEC_INVALID: Trouble(
        "What only the data or the model can tell: more held-out examples than there are, modules that the model does "
        "not have, a length beyond the model's positions.",
        STATUS,
    ),
    Reason.BASE_NOT_PROMOTED: Trouble(
        "The other job still trains, its run failed its gate, it has another name, or it is in another namespace.",
        "kubectl get finetunejobs",
    ),
    Reason.BUDGET_EXCEEDED: Trouble(
        "A budget for a smaller training: more data or epochs than before, a GPU slower than estimated, interruptions "
        "whose steps were trained again. `usage` has the GPU seconds by price, `estimate` what was expected.",
        COST,
        "The run is held, not ended: its checkpoint stays, and it goes on by itself when the budget is raised.",
    ),
    Reason.PRICE_MISSING: Trouble(
        "A platform that was installed without prices, a GPU type that was added later, `prices.gpuHour` without a "
        "`default`.",
        STATUS,
        "The run is held until there is a price, or until budget.maxCost is removed.",
    ),
    Reason.SCHEDULE_INVALID: Trouble(
        "A misspelt city, an abbreviation such as CEST in place of a zone, a range from the higher to the lower value, "
        "the 30th of February.",
        SCHEDULED,
        "It is said by the condition Scheduled. No run begins by the schedule; everything else goes on.",
    ),
    Reason.CUDA_OUT_OF_MEMORY: Trouble(
        "The longest examples in one micro batch; another process on the same GPU; a model that was estimated for "
        "another GPU. The micro batch was halved once before this was said; `status.run.notes` has it.",
        TRAIN_LOG,
    ),
    Reason.LOSS_NOT_FINITE: Trouble(
        "A learning rate too high for the method, an adapter of large alpha and small rank, examples of noise. The "
        "last checkpoint before it is on the claim.",
        TRAIN_LOG,
    ),
    Reason.ARTIFACT_INVALID: Trouble(
        "Somebody wrote into a run's folder, a volume that lost writes, or a training that changed nothing: an adapter "
        "whose B matrices are zero, answers that never end.",
        TRAIN_LOG,
    ),
    Reason.OUT_OF_MEMORY: Trouble(
        "A limit below what the model needs to be loaded (weights once, and once more while they are read), long "
        "examples on a CPU, /dev/shm, which counts as memory.",
        POD,
    ),
    Reason.UNSCHEDULABLE: Trouble(
        "No free GPU, a taint without its toleration, a nodeSelector that matches nothing, a claim in another zone. "
        "The message has the scheduler's count of nodes by cause.",
        POD,
    ),
    Reason.IMAGE_PULL: Trouble(
        "A tag that was not pushed, a registry that wants `imagePullSecrets`, a mirror not set by `imageRegistry`, "
        "nodes without a way to the registry.",
        POD,
    ),
    Reason.STORAGE_UNBOUND: Trouble(
        "No default StorageClass, a claim that was never applied, a ReadWriteOnce volume that another node holds (the "
        "server of the run before, mostly).",
        CLAIMS,
    ),
    Reason.STORAGE_FULL: Trouble(
        "Runs and checkpoints of months, base models of several revisions: `models/` and `runs/` on the claim. A "
        "checkpoint that was cut off by it is never gone on from.",
        CLAIMS,
        "It shows while it lasts, and the stage goes on by itself when there is room. Where a library ends the only "
        "process of a stage without a word, it counts as a failure and ends the run after the retries.",
    ),
    Reason.CONFIG_MISSING: Trouble(
        "The ConfigMap of the data or a Secret was not applied, has another namespace, or was pruned while the run was "
        "still in Prepare.",
        POD,
    ),
    Reason.CONFIG_UNREADABLE: Trouble("The operator or the trainer image was taken back to an older version.", STATUS),
    Reason.EVICTED: Trouble(
        "A node that ran out of memory or disk chose this pod: it used more than it had requested; or the pod wrote "
        "more to its scratch space than its own limit.",
        POD,
        "It is tried again at growing intervals, at once when compute is changed, and goes on from its checkpoint.",
    ),
    Reason.INTERRUPTED: Trouble(
        "A drained node, a spot node that was taken back, a pod that was deleted. It is not counted as a failure.", PODS
    ),
    Reason.NODE_LOST: Trouble(
        "A machine that is off or has no network, a kubelet that died. Kubernetes ends the node's pods after five "
        "minutes (`tolerationSeconds` of `node.kubernetes.io/unreachable` in compute.tolerations), but only the node "
        "can confirm their end, and two trainings must never write into one folder. Servers are replaced elsewhere "
        "without that. The operator never removes a pod by force.",
        "kubectl get nodes",
    ),
    Reason.DEADLINE_EXCEEDED: Trouble(
        "Progress slower than estimated (a shared GPU, a slow volume), or long waiting: the deadline counts from the "
        "Job's first pod. The checkpoints stay on the claim.",
        STATUS,
    ),
    Reason.QUOTA_EXCEEDED: Trouble("The namespace's ResourceQuota is used up.", "kubectl describe resourcequota"),
    Reason.POD_REFUSED: Trouble(
        "Pod Security, a LimitRange, a quota that demands limits, a policy engine's webhook, a PriorityClass that does "
        "not exist. The message has the refusal word for word.",
        "kubectl get events --field-selector reason=FailedCreate",
    ),
    Reason.QUEUED: Trouble(
        "Others have the quota, or a job of higher priority took it. The message is the queue's own. A training that "
        "had to give way keeps its checkpoint and its place.",
        QUEUE,
    ),
    Reason.QUEUE_UNAVAILABLE: Trouble(
        "A misspelt queue, one of another namespace, one that was stopped, a ClusterQueue without the resource that "
        "is asked for or with less than one job needs, a Workload that somebody deactivated.",
        QUEUE,
    ),
    Reason.JOB_SUSPENDED: Trouble(
        "A queue controller that takes every Job of the namespace, or a person. The operator itself never suspends a "
        "Job without a queue.",
        "kubectl get jobs -l finetune-operator.io/job=NAME",
    ),
    Reason.NAME_CONFLICT: Trouble(
        "An object of that name was there before, or a job was made anew while its children were still being "
        "collected.",
        "kubectl get jobs,deployments,services,configmaps -l finetune-operator.io/job=NAME",
    ),
    Reason.FORMER_POD: Trouble(
        "A node that is lost with the pod on it. Two trainings must never write into one folder, so nothing starts "
        "beside it.",
        PODS,
    ),
    Reason.NOT_READY: Trouble(
        "A model too large for the server's memory, an image that cannot load it, a probe that ends it before it is "
        "loaded. The run of before goes on answering.",
        SERVE_LOG,
        "It shows while it lasts. After serving.progressDeadlineSeconds the run before is put back, where there is one "
        "(`status.runs` has it as RolledBack); a first run's servers are left to become ready.",
    ),
    Reason.SMOKE_FAILED: Trouble(
        "An answer of another wording than serving.smokeTest.contains asks for, a model that ends every answer at "
        "once, a server too slow for serving.smokeTest.timeoutSeconds.",
        SERVE_LOG,
        "The run before never stopped answering and is put back; `status.runs` has this one as RolledBack. A first run "
        "does not get into service.",
    ),
    Reason.RUN_NOT_FOUND: Trouble(
        "A number that was never reached, a run that failed before it had a model, one whose files "
        "`output.retention` has removed, or one that `runHistoryLimit` has forgotten.",
        "kubectl get finetunejob NAME -o jsonpath='{.status.runs[*].number}'",
        "No run ends by it; what is in service goes on serving.",
    ),
    Reason.DESTINATION_REFUSED: Trouble(
        "Credentials of another registry or account, a repository or bucket that was not made, a tag that stands for "
        "other content.",
        PACKAGE_LOG,
        EXPORT_ONLY,
    ),
    Reason.EXPORT_UNSUPPORTED: Trouble(
        "An architecture that the exporter does not know, or outputs that differ from the model's own.",
        PACKAGE_LOG,
        EXPORT_ONLY,
    ),
    Reason.DESTINATION_UNAVAILABLE: Trouble(
        "A registry that is down or behind a proxy, a private certificate authority, a NetworkPolicy.",
        PACKAGE_LOG,
        EXPORT_ONLY,
    ),
    Reason.SYSTEM_FAULT: Trouble(
        "A fault of the node, of the driver, or of ours; a volume that user and group 65532 may not write, as NFS has "
        "it, which does not obey fsGroup. The end of the log stands in the message.",
        TRAIN_LOG,
    ),
}

WHOSE = {
    Blame.INPUT: "the author of the job, in its specification, data or model",
    Blame.TRAINING: "the author of the job, in how it trains",
    Blame.CLUSTER: "who runs the cluster or the namespace",
}
HEAD = """<!-- Generated by `make generate`. Do not edit. -->
# Troubleshooting

`REASON` in the table of jobs (`kubectl get finetunejobs -A`) is one of the words below when something does not go on.
The status has the message and the advice for this very case, which `kubectl describe finetunejob NAME` prints; here is
what mostly lies behind. Commands are for the job's namespace: add `-n NAMESPACE` where it is not yours. For the
platform's alerts see the [runbook](operations-runbook.md).

**To try again.** A job goes on by itself when what was wrong in its specification is changed. It does not see what was
put right elsewhere: a Secret's content, a file, a licence. When its run has ended, set another word (in Git, if the job
lives there), and a new run begins:

```console
$ kubectl patch finetunejob NAME --type merge -p '{"spec": {"rerunToken": "again-1"}}'
```

## Words that are no failure

| `REASON` | what it means |
|---|---|
| `Preparing`, `Training`, `Evaluating`, `Judging` | the run is in that stage |
| `Settling` | the job was edited; it trains when it has not changed again for `settleSeconds` of the chart (30) |
| `Packaging` | the model is promoted, and answers where it is served; its exports are made and its trackers told |
| `RollingOut` | servers of the model start; the run before answers until they are ready |
| `Serving`, `Trained` | done: the model answers, or is kept because `serving.replicas` is 0 |
| `GateFailed` | the model did not pass `evaluation.gate`, and no earlier run can answer. `status.run.gate.reasons` \
has each rule with its figures. Better data or other hyperparameters start a new run; another gate is judged at once |
| `AwaitingApproval` | it passed its gate and waits for `promotion.approved`; the message has what to write |
| `Suspending`, `Suspended` | `spec.suspend` is true; `false` goes on from the checkpoint |

"""


def troubleshooting_page() -> str:
    """Markdown: the reasons by who has to look first, each with causes, a first look, and what to do."""
    parts = [HEAD]
    for blame in Blame:
        reasons = [reason for reason in TROUBLES if REASONS[reason].blame is blame]
        parts.append(f"## For {WHOSE[blame]}\n\n")
        parts += [_part(reason, REASONS[reason], TROUBLES[reason]) for reason in reasons]
    return "".join(parts).rstrip("\n") + "\n"


def _part(reason: Reason, facts: ReasonFacts, trouble: Trouble) -> str:
    return (
        f"### {reason}\n\n{facts.meaning} {trouble.course or _course(facts)}\n\n"
        f"**Mostly.** {trouble.causes}\n\n```console\n$ {trouble.look}\n```\n\n**What to do.** {facts.advice}\n\n"
    )


def _course(facts: ReasonFacts) -> str:
    if facts.waits:
        return "It shows while it lasts, and the job goes on by itself when it is over."
    code = f" (exit code {facts.exit_code})" if facts.exit_code is not None else ""
    return f"It ends the run{code}; what served before goes on serving."
