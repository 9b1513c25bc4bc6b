"""The methods, by name."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.tasks import MethodType
from finetune_trainer.methods.dora import Dora
from finetune_trainer.methods.full import Full
from finetune_trainer.methods.kind import MethodKind
from finetune_trainer.methods.lora import Lora
from finetune_trainer.methods.qlora import QLora

METHODS: Mapping[MethodType, MethodKind] = {kind.type: kind for kind in (Lora(), QLora(), Dora(), Full())}
