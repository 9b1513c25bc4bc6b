"""Distributions that make no sense: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

ONE = "compute.distribution.strategy: one process has nothing to distribute; set it to auto, or raise gpus or processes"
DIVIDED = (
    "it divides the weights, which only Chat and Completion with LoRA or Full are proven with; use auto, DDP or ZeRO2"
)

DISTRIBUTION = (
    Bad(
        "memory of a GPU that is not asked for",
        "compute: {gpus: 0, gpuMemory: 80Gi}",
        "spec.compute",
        "compute.gpuMemory: the job asks for no GPU; remove it, or set gpus",
    ),
    Bad(
        "memory of a GPU without its unit",
        "compute: {gpuMemory: 80}",
        "spec.compute",
        "compute.gpuMemory: less than 1Gi is no GPU's memory; write it with its unit, for example 80Gi",
    ),
    Bad(
        "processes beside GPUs",
        "compute: {gpus: 2, processes: 2}",
        "spec.compute",
        "compute.processes: with GPUs there is one process a GPU; remove it, or set gpus to 0",
    ),
    Bad("DDP on one GPU", "compute: {gpus: 1, distribution: {strategy: DDP}}", "spec.compute", ONE),
    Bad("ZeRO on the default GPU", "compute: {distribution: {strategy: ZeRO3}}", "spec.compute", ONE),
    Bad("FSDP2 in one process", "compute: {gpus: 0, distribution: {strategy: FSDP2}}", "spec.compute", ONE),
    Bad(
        "one process for four GPUs",
        "compute: {gpus: 4, distribution: {strategy: None}}",
        "spec.compute",
        "compute.distribution.strategy: None is one process, and there are several; set it to auto, or gpus or "
        "processes to 1",
    ),
    Bad(
        "DDP with offload",
        "compute: {gpus: 2, distribution: {strategy: DDP, offload: CPU}}",
        "spec.compute.distribution",
        "compute.distribution.offload: only ZeRO offloads; set strategy to ZeRO1, ZeRO2 or ZeRO3, or remove it",
    ),
    Bad(
        "FSDP2 with offload",
        "compute: {gpus: 2, distribution: {strategy: FSDP2, offload: CPU}}",
        "spec.compute.distribution",
        "compute.distribution.offload: only ZeRO offloads",
    ),
    Bad(
        "offload by auto",
        "compute: {gpus: 2, distribution: {offload: CPU}}",
        "spec.compute.distribution",
        "compute.distribution.offload: only ZeRO offloads",
    ),
    Bad(
        "an optimizer that ZeRO cannot divide",
        "{hyperparameters: {optimizer: Adafactor}, compute: {gpus: 2, distribution: {strategy: ZeRO2}}}",
        "spec",
        "hyperparameters.optimizer: ZeRO and FSDP2 divide the state of AdamW and AdamWFused only; use one of them, or "
        "compute.distribution.strategy DDP",
    ),
    Bad(
        "ZeRO-3 of a base in 4 bits",
        "{method: {type: QLoRA}, compute: {gpus: 2, distribution: {strategy: ZeRO3}}}",
        "spec",
        f"compute.distribution.strategy: ZeRO3 is not for this task and method: {DIVIDED}",
    ),
    Bad(
        "FSDP2 of DoRA",
        "{method: {type: DoRA}, compute: {gpus: 0, processes: 2, distribution: {strategy: FSDP2}}}",
        "spec",
        f"compute.distribution.strategy: FSDP2 is not for this task and method: {DIVIDED}",
    ),
    Bad(
        "ZeRO-3 of a classifier",
        "{task: Classification, compute: {gpus: 2, distribution: {strategy: ZeRO3}}}",
        "spec",
        f"compute.distribution.strategy: ZeRO3 is not for this task and method: {DIVIDED}",
    ),
    Bad(
        "FSDP2 of preferences",
        "{task: Preference, compute: {gpus: 2, distribution: {strategy: FSDP2}}}",
        "spec",
        f"compute.distribution.strategy: FSDP2 is not for this task and method: {DIVIDED}",
    ),
)
