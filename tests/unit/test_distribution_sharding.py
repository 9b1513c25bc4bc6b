"""Which strategy `auto` takes."""

from __future__ import annotations

import pytest

from finetune_api.distribution import DistributionSpec
from finetune_api.spec import MethodSpec
from finetune_api.tasks import MethodType, Task
from finetune_trainer.distribution import sharding
from finetune_trainer.distribution.plan import Devices, Workload, cut
from finetune_trainer.distribution.sharding import ALONE
from finetune_trainer.errors import UserInputError
from finetune_trainer.estimate import ModelShape

GIB = 2**30
SEVEN_B = 6_738_415_616  # Llama-2-7B


def llama(trained: int, method: MethodType) -> ModelShape:
    return ModelShape(SEVEN_B, trained, 32, 4096, 11008, 4096, 32000, 4096, method=MethodSpec(type=method))


def chosen(
    memory: float | None,
    processes: int,
    *,
    trained: int = SEVEN_B,
    method: MethodType = MethodType.FULL,
    task: Task = Task.CHAT,
    **wanted: str,
) -> tuple[str, str]:
    work = Workload(task, method, llama(trained, method), 16, 512, "bfloat16")
    limit = None if memory is None else int(memory * GIB)
    found = cut(work, Devices(processes, True, limit), DistributionSpec.model_validate(wanted))
    return found.choice.strategy.value, found.choice.offload.value


@pytest.fixture(autouse=True)
def _deepspeed_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda name: name)


LORA = 40_000_000
CASES = [
    # GiB of a device; behind it how many the strategy needs there. At most 80 % are taken.
    (200, 8, SEVEN_B, ("DDP", "None")),  # 152
    (110, 8, SEVEN_B, ("ZeRO1", "None")),  # 84
    (80, 8, SEVEN_B, ("ZeRO2", "None")),  # 62
    (70, 8, SEVEN_B, ("ZeRO2", "CPU")),  # 52
    (60, 8, SEVEN_B, ("ZeRO3", "None")),  # 41
    (40, 8, SEVEN_B, ("ZeRO3", "CPU")),  # 29
    (24, 2, LORA, ("DDP", "None")),
    (16, 4, LORA, ("ZeRO3", "None")),
    (None, 4, SEVEN_B, ("DDP", "None")),
    (1, 1, SEVEN_B, ("None", "None")),
]


@pytest.mark.parametrize(("memory", "processes", "trained", "expected"), CASES)
def test_auto_takes_the_fastest_that_fits(
    memory: float | None, processes: int, trained: int, expected: tuple[str, str]
) -> None:
    method = MethodType.LORA if trained == LORA else MethodType.FULL
    assert chosen(memory, processes, trained=trained, method=method) == expected


def test_auto_keeps_to_what_goes_together() -> None:
    assert chosen(8, 4, trained=LORA, method=MethodType.QLORA) == ("ZeRO2", "CPU")  # nothing fits: what needs least
    assert chosen(8, 4, task=Task.CLASSIFICATION) == ("ZeRO2", "CPU")


def test_what_is_named_is_taken_whether_it_fits_or_not() -> None:
    assert chosen(1, 4, strategy="DDP") == ("DDP", "None")
    assert chosen(200, 4, strategy="FSDP2") == ("FSDP2", "None")
    assert chosen(200, 4, strategy="ZeRO2") == ("ZeRO2", "None")
    assert chosen(20, 4, strategy="ZeRO2") == ("ZeRO2", "CPU")  # offload is auto
    assert chosen(20, 4, strategy="ZeRO2", offload="None") == ("ZeRO2", "None")
    assert chosen(200, 4, strategy="ZeRO3", offload="CPU") == ("ZeRO3", "CPU")


def test_without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda _name: None)
    assert chosen(80, 8) == ("FSDP2", "None")
    with pytest.raises(UserInputError) as caught:
        chosen(40, 8, strategy="ZeRO3")
    assert "DeepSpeed is not installed" in caught.value.message
    assert "FSDP2" in caught.value.advice


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.importlib.util, "find_spec", lambda _name: None)
    assert list(sharding.candidates(DistributionSpec(), 1, Task.CHAT, MethodType.LORA)) == [ALONE]
