"""FineTuneJob: the types that the CRD, the documentation, the control plane and the trainer share.

This package is the only floor that everybody stands on. It imports pydantic and nothing else.
"""

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"

__all__ = ["API_VERSION", "GROUP", "KIND", "PLURAL", "VERSION"]
