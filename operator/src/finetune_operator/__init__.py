"""The control plane of FineTuneJob."""

FIELD_MANAGER = "finetune-operator"
