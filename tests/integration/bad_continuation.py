"""Models of other jobs that cannot be gone on from as it stands: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

ONE = "baseModel: give exactly one of source and fineTuneJob"
CONTINUE = "baseModel: {source: null, fineTuneJob: {name: chat, mode: Continue}}"
AS_IT_IS = "baseModel.fineTuneJob.mode Continue goes on with the adapter as it is; remove it, or set the mode to Stack"
CONTINUATION = (
    Bad("two bases", "baseModel: {fineTuneJob: {name: chat}}", "spec.baseModel", ONE),
    Bad("no base", "baseModel: {source: null}", "spec.baseModel", ONE),
    Bad(
        "a commit of a run",
        f"baseModel: {{source: null, fineTuneJob: {{name: chat}}, revision: {'a' * 40}}}",
        "spec.baseModel",
        "baseModel.revision: only a hub model (hf://) has a revision; remove it",
    ),
    Bad(
        "a secret of a run",
        "baseModel: {source: null, fineTuneJob: {name: chat}, secretRef: {name: token}}",
        "spec.baseModel",
        "baseModel.secretRef: nothing is fetched for fineTuneJob; remove it",
    ),
    Bad(
        "going on in full",
        f"{{{CONTINUE}, method: {{type: Full}}}}",
        "spec",
        "method.type: baseModel.fineTuneJob.mode Continue goes on with an adapter of LoRA or QLoRA",
    ),
    Bad("another rank", f"{{{CONTINUE}, method: {{rank: 8}}}}", "spec", f"method.rank: {AS_IT_IS}"),
    Bad("other layers", f"{{{CONTINUE}, method: {{targetModules: [q_proj]}}}}", "spec", f"targetModules: {AS_IT_IS}"),
)
