"""The API server and the types give the same verdict on jobs that nobody thought of."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.integration.bad_manifests import GOOD
from tests.integration.conftest import JobApi

from finetune_api.job import FineTuneJob, run_hash


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


SOURCES = some(
    *("hf://a/b", "hf://a/b/c", "hf://a", "hf://-/b", "pvc://claim/x", "pvc://claim/", "pvc://claim/a/../b"),
    *("s3://bucket/key", "s3://b/key", "s3://Bucket/key", "https://h/x", "https://u@h/x", "https://h", "https://h?@/x"),
    *("ftp://x/y", "", " hf://a/b", "hf://a/b\n", "HF://a/b", "https://h/a@b", "pvc://c/x y"),
)
NUMBERS = some("auto", "Auto", "1", 0, 1, 2, 16, 100, 101, 256, 257, 131072, 131073, -1, 1.5, True, 10**20)
QUANTITIES = some(
    "1", 1, "0", "500m", "2Gi", "2G", "1.5", "1.5Gi", "1e3", "-1", -1, "", "Gi", "1 Gi", 2.5, "1" * 33, 10**17
)
LIMITS = maybe(**{"cpu": QUANTITIES, "memory": QUANTITIES, "ephemeral-storage": QUANTITIES})
LABELS = st.dictionaries(
    some("a", "a/b", "a/b/c", "A.b/c", "a b", "", "-a"), some("x", "", "x y", "-x", "x" * 64), max_size=2
)
TOLERATION = maybe(
    key=some("a", "a/b", "", "a b"),
    operator=some("Exists", "Equal", "exists"),
    value=some("x", "", "x y"),
    effect=some("NoExecute", "NoSchedule"),
    tolerationSeconds=some(0, 5, -1),
)
PLACEMENT = {
    "resources": maybe(requests=LIMITS, limits=LIMITS),
    "nodeSelector": LABELS,
    "tolerations": st.lists(TOLERATION, max_size=2),
}
REFERENCE = maybe(name=some("a", "a.b", "A", "a-", "x" * 254), key=some("k", "k.jsonl", "a/b"))
FILE = {"source": SOURCES, "configMapRef": REFERENCE}
RULE = maybe(
    metric=some("loss", "tokenAccuracy", "accuracy", "Loss"),
    minImprovement=some("5%", "5", "0.5%", "1000%", "-1%"),
    max=some("1", "1.5", 1, "1e3"),
    min=some("0.7", ".7"),
)
SPEC = maybe(
    task=some("Chat", "Completion", "Preference", "Classification", "Seq2Seq", "chat"),
    method=maybe(
        type=some("LoRA", "QLoRA", "DoRA", "Full"),
        rank=some(1, 512, 513),
        rsLoRA=some(True, False, "true"),
        initialization=some("default", "gaussian", "pissa"),
        doubleQuantization=some(True, False),
        alpha=some(1, 2049),
        dropout=some("0", "0.1", "1", "0.12345"),
        targetModules=st.lists(some("q_proj", "v_proj", "a-b", ""), max_size=3),
    ),
    hyperparameters=maybe(
        epochs=NUMBERS,
        batchSize=NUMBERS,
        maxLength=NUMBERS,
        learningRateMultiplier=some("auto", "1.8", "0", "0.0", "00010", 0, 3, 9999, 10000, "9999.9", "1,8", "1.", 1.5),
        packing=some("auto", "Enabled", "Auto"),
        beta=some("0.1", "0", "2", "2.5", 1),
        learningRate=some("2e-4", "2e-04", "0.0002", "0", "0.0", "1", "2e4", "1.5e-9", "0.000000001", 0.1, "2E-4"),
        schedule=some("auto", "Cosine", "Constant", "cosine"),
        warmup=some("auto", 0, 10, 100000, 100001, -1, "3%", "99.5%", "100%", "1e1%", "10", True),
        optimizer=some("auto", "AdamW", "PagedAdamW", "Lion8bit", "adamw"),
        weightDecay=some("auto", "0", "0.01", "1", "1.0000001", "-0.1", "1e-2", 0.1, ""),
        maxGradNorm=some("auto", "0", "1000", "1000.5", "inf"),
        loss=some("auto", "NLL", "DFT", "IPO", "CrossEntropy"),
        labelSmoothing=some("auto", "0", "0.1", "0.5", "0.49"),
        neftuneAlpha=some("auto", "5", "100.1"),
        earlyStopping=maybe(patience=some(1, 0, 100, 101), minImprovement=some("0%", "1%", "1", "100%")),
        precision=some("auto", "BFloat16", "Float16"),
        attention=some("auto", "SDPA", "FlashAttention2", "sdpa"),
        gradientCheckpointing=some("auto", "Enabled", True),
        seed=some(0, 2**31 - 1, 2**31, -1),
    ),
    compute=maybe(
        gpus=some(0, 1, 2, 16, 17),
        processes=some(1, 2, 0, 17),
        distribution=maybe(
            strategy=some("auto", "None", "DDP", "ZeRO1", "ZeRO2", "ZeRO3", "FSDP2", "zero"),
            offload=some("auto", "None", "CPU", "GPU"),
        ),
        gpuResource=some("amd.com/gpu", "gpu"),
        **PLACEMENT,
    ),
    evaluation=maybe(
        baselines=st.lists(some("Base", "FewShot", "Previous", "base"), max_size=3),
        gate=maybe(rules=st.lists(RULE, max_size=2)),
        maxExamples=some(0, 1, 10001),
    ),
    serving=maybe(
        engine=some("auto", "VLLM", "Native"), gpus=some("auto", 0, 1, 2, "1"), replicas=some(0, 32, 33), **PLACEMENT
    ),
    rerunToken=some("again", "", "a b", "x" * 64),
)
DESTINATIONS = some(
    *("oci://r/t", "oci://r:5000/t/u:v1", "oci+http://r/t", "oci://r", "oci://r/T", "oci://r/t:", "oci://r/t@sha256:0"),
    *(
        "s3://bucket/a",
        "s3://bucket/a/../b",
        "s3://b/a",
        "s3://bucket",
        "s3://bucket/a b",
        "https://r/t",
        "oci://r/t\n",
    ),
)
EXPORT = maybe(
    name=some("a", "b", "a-b", "A", "a" * 33),
    format=some("Safetensors", "ONNX", "onnx"),
    precision=some("auto", "Float32", "float32"),
    to=DESTINATIONS,
    conflictPolicy=some("Refuse", "Replace", "Keep"),
    secretRef=some({"name": "keys"}, {}),
)
# One part at a time is strange: were all of them, nearly every job would be refused, and for many reasons at once.
STRANGE = st.one_of(
    SPEC.flatmap(lambda spec: st.sampled_from([{key: value} for key, value in spec.items()] or [{}])),
    st.builds(lambda file: {"dataset": {"train": file}}, maybe(**FILE)),
    st.builds(
        lambda part: {"dataset": {"train": {"source": "pvc://a/b"}, "validation": part}},
        maybe(fraction=some(0, 0.01, 0.5, 0.51, "0.1", 1), **FILE),
    ),
    st.builds(lambda model: {"baseModel": model}, maybe(source=SOURCES, revision=some("a" * 40, "A" * 40, "main"))),
    st.builds(
        lambda serving, gpus: {"serving": serving, "compute": {"gpus": gpus}},
        maybe(engine=some("VLLM", "auto"), gpus=some("auto", 0, 1)),
        some(0, 1),
    ),
    st.builds(
        lambda exports: {"output": {"claimName": "models", "exports": exports}},
        st.lists(EXPORT, min_size=1, max_size=3),
    ),
)


def accepted(manifest: dict[str, Any]) -> str:
    """Empty, or why a laptop would refuse it."""
    try:
        FineTuneJob.model_validate(manifest)
    except ValidationError as error:
        return str(error)
    return ""


def test_same_verdict(job_api: JobApi) -> None:
    @settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(STRANGE)
    def compare(strange: dict[str, Any]) -> None:
        manifest = {**GOOD, "spec": {**GOOD["spec"], **strange}}
        answer, refusal = job_api.create(manifest), accepted(manifest)
        assert (answer.code == 201) == (not refusal), f"{strange}: {answer.code} {answer.message}; laptop: {refusal}"
        if answer.code == 201:
            stored, written = FineTuneJob.model_validate(answer.body), FineTuneJob.model_validate(manifest)
            assert stored.spec == written.spec
            assert run_hash(stored.spec) == run_hash(written.spec)

    compare()
