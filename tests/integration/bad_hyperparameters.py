"""Hyperparameters that make no sense, alone or with others: a part of the table of bad manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad


def knob(name: str, text: str, message: str, field: str = "spec.hyperparameters", more: str = "") -> Bad:
    """A job with these hyperparameters, and `more` of the spec."""
    return Bad(name, f"{{hyperparameters: {{{text}}}{more and ', '}{more}}}", field, message)


def of_spec(name: str, text: str, message: str, more: str = "") -> Bad:
    return knob(name, text, message, "spec", more)


CPU = "compute: {gpus: 0}"
RATE = "hyperparameters.learningRate: write a number above 0 and below 1 in quotes"
HYPERPARAMETER_RULES = (
    knob("no learning", "learningRate: '0'", RATE),
    knob("a learning rate of zeros", "learningRate: '0.000'", RATE),
    knob("a learning rate in words", "learningRate: fast", RATE),
    knob("a learning rate of one", "learningRate: '1'", RATE),
    knob(
        "both learning rates",
        "learningRate: '2e-4', learningRateMultiplier: '2'",
        "hyperparameters: give learningRate or learningRateMultiplier, not both; remove one",
    ),
    knob("a warm-up without end", "warmup: '100%'", "hyperparameters.warmup: write auto, a number of optimizer steps"),
    knob("a negative warm-up", "warmup: -1", "hyperparameters.warmup: write auto, a number of optimizer steps"),
    knob(
        "a warm-up of a constant",
        "schedule: Constant, warmup: 10",
        "hyperparameters.warmup: the schedule Constant has none; set schedule to ConstantWithWarmup or remove it",
    ),
    knob(
        "too much decay",
        "weightDecay: '1.5'",
        'hyperparameters.weightDecay: write auto, or a decimal in quotes from 0 to 1, for example "0.01"',
    ),
    knob("half of the labels", "labelSmoothing: '0.5'", "labelSmoothing: write auto, or a decimal in quotes from 0 to"),
    knob("gradients of words", "maxGradNorm: one", "hyperparameters.maxGradNorm: write auto, or a decimal in quotes"),
    knob(
        "nothing but noise", "neftuneAlpha: '101'", "hyperparameters.neftuneAlpha: write auto, or a decimal in quotes"
    ),
    knob(
        "noise on packed rows",
        "neftuneAlpha: '5', packing: Enabled",
        "hyperparameters.packing: NEFTune's noise is measured by the length of an example, which packed rows hide",
    ),
    knob(
        "flash attention in 32 bits",
        "attention: FlashAttention2, precision: Float32",
        "hyperparameters.attention: FlashAttention2 computes in 16 bits; set precision to auto, or attention to SDPA",
    ),
    of_spec("a chat's preference", "loss: IPO", "hyperparameters.loss: the task Chat has NLL, DFT; use one of them"),
    of_spec(
        "a preference by likelihood",
        "loss: NLL",
        "hyperparameters.loss: the task Preference has Sigmoid, SigmoidNorm, Hinge, IPO, Robust",
        "task: Preference",
    ),
    of_spec(
        "weighted words",
        "loss: WeightedCrossEntropy",
        "hyperparameters.loss: the task Seq2Seq has NLL; use one of them, or auto",
        "task: Seq2Seq",
    ),
    of_spec(
        "a smoothed chat",
        "labelSmoothing: '0.1'",
        "hyperparameters.labelSmoothing: not for Chat, because TRL's loss never holds the probabilities of all tokens",
    ),
    of_spec(
        "a smoothed reader",
        "labelSmoothing: '0.1'",
        "hyperparameters.labelSmoothing: not for QuestionAnswering, because an answer begins and ends at one place",
        "task: QuestionAnswering",
    ),
    of_spec(
        "a smoothed sigmoid",
        "labelSmoothing: '0.1'",
        "hyperparameters.labelSmoothing: for Preference only the loss Robust has it; set loss to Robust, or remove it",
        "task: Preference",
    ),
    of_spec(
        "a noisy preference",
        "neftuneAlpha: '5'",
        "hyperparameters.neftuneAlpha: Preference compares the model with its base",
        "task: Preference",
    ),
    of_spec(
        "pages without a GPU",
        "optimizer: PagedAdamW",
        "hyperparameters.optimizer: PagedAdamW pages the memory of a GPU, and compute.gpus is 0; set it to AdamW",
        CPU,
    ),
    of_spec(
        "pages of 8 bits without a GPU",
        "optimizer: PagedAdamW8bit",
        "PagedAdamW8bit pages the memory of a GPU, and compute.gpus is 0; set it to AdamW8bit",
        CPU,
    ),
    of_spec(
        "flash attention without a GPU",
        "attention: FlashAttention2",
        "hyperparameters.attention: FlashAttention2 runs on a GPU, and compute.gpus is 0; set it to auto",
        CPU,
    ),
    of_spec(
        "16 bits without a GPU",
        "precision: BFloat16",
        "hyperparameters.precision: BFloat16 is for GPUs, and compute.gpus is 0; set it to auto",
        CPU,
    ),
)
