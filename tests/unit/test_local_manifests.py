"""Mistakes in the YAML are named with file, line, path and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from finetune_operator.local import jobs, machine, manifests
from finetune_operator.local.errors import BadInput
from finetune_operator.local.store import Store

GOOD = """\
apiVersion: finetune-operator.io/v1alpha1
kind: FineTuneJob
metadata:
  name: travel
spec:
  baseModel:
    source: pvc://sources/tiny
  dataset:
    train:
      configMapRef: {name: data, key: train.jsonl}
  hyperparameters:
    epochs: 3
  output:
    claimName: models
"""
ADVICE = "give the file of a FineTuneJob with -f"
DATA = """\
---
apiVersion: v1
kind: ConfigMap
metadata: {name: data}
data:
  train.jsonl: |
    {}
"""


def read(tmp_path: Path, text: str, name: str | None = None) -> manifests.Given:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return manifests.read([str(path)], name=name)


def test_a_good_job_has_its_defaults_and_its_config_map(tmp_path: Path) -> None:
    given = read(tmp_path, GOOD + DATA)
    assert given.job.spec.hyperparameters.epochs == 3
    assert given.job.spec.compute.gpus == 1
    assert given.job.metadata.namespace == "default"
    assert given.config_maps["data"]["data"] == {"train.jsonl": "{}\n"}


@pytest.mark.parametrize("name", ["a" * 253, "travel.assistant-2", "0"])
def test_a_name_is_good_where_the_api_server_takes_it(tmp_path: Path, name: str) -> None:
    given = read(tmp_path, GOOD.replace("name: travel", f"name: '{name}'"))
    assert given.job.metadata.name == name


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("epochs: 3", "epoch: 3", 12, "spec.hyperparameters.epoch: unknown field; did you mean epochs?"),
        ("epochs: 3", "Epochs: 3", 12, "did you mean epochs?"),
        ("epochs: 3", "epochs: 3000", 12, "spec.hyperparameters.epochs: 3000: "),
        ("epochs: 3", "epochs: many", 12, "spec.hyperparameters.epochs: 'many': "),
        ("epochs: 3", "epochs: '3'", 12, "spec.hyperparameters.epochs: '3': write auto or a whole number"),
        ("epochs: 3", "learningRate: 0.0002", 12, 'learningRate: 0.0002: write it in quotes: "0.0002"'),
        ("epochs: 3", "learningRateMultiplier: 0.5", 12, 'Multiplier: 0.5: write it in quotes: "0.5"'),
        ("epochs: 3", "seed: '3'", 12, "seed: '3': write it without quotes: 3"),
        ("epochs: 3", "seed: three", 12, "seed: 'three': write a whole number"),
        (
            "  output:",
            "  evaluation: {gate: {rules: [{metric: loss, minImprovement: 10}]}}\n  output:",
            13,
            'example "5%"',
        ),
        ("claimName: models", "claimName: My_Models", 14, "'My_Models': write lower-case letters"),
        ("baseModel:", "base_model:", 6, "spec.base_model: unknown field; did you mean baseModel?"),
        ("  output:\n    claimName: models\n", "", 5, "spec.output: missing"),
        ("claimName: models", "claimName: Models!", 14, "spec.output.claimName: 'Models!': "),
        ("  baseModel:", "  task: chat\n  baseModel:", 6, "spec.task: 'chat': write one of 'Chat', 'Completion', "),
        ("  baseModel:", "  task: chat\n  baseModel:", 6, "'QuestionAnswering'; did you mean Chat?"),
        ("  output:", "  method: {type: lora}\n  output:", 13, "did you mean LoRA?"),
        ("  output:", "  method: LoRA\n  output:", 13, "spec.method: 'LoRA': write fields below it: type, "),
        ("pvc://sources/tiny", "./tiny", 7, "'./tiny': write pvc://CLAIM/PATH for what lies on this machine"),
        ("pvc://sources/tiny", '"pvc://a b/tiny"', 7, "'pvc://a b/tiny': no blanks may be in it; rename what it names"),
        ("pvc://sources/tiny", "https://host/model", 6, "use hf://, pvc:// or s3://"),
        ("pvc://sources/tiny", "ftp://host/model", 7, "spec.baseModel.source: "),
        ("name: travel", "name: Travel Assistant", 4, "metadata.name: 'Travel Assistant'; write lower-case"),
        ("name: travel", f"name: {'a' * 254}", 4, "dashes and dots, at most 253 characters"),
        ("name: travel", "name: travel..assistant", 4, "metadata.name: 'travel..assistant'; write lower-case"),
        ("v1alpha1", "v1", 1, "apiVersion: 'finetune-operator.io/v1'; write finetune-operator.io/v1alpha1"),
        ("spec:", "specs:", 5, "specs: unknown field; did you mean spec?"),
        ("epochs: 3", "epochs: 3\n    epochs: 4", 13, "epochs stands in line 12 already"),
        ("epochs: 3", "epochs: [3", 13, "not valid YAML"),
        (
            "  name: travel",
            "  name: travel\n  namespace: ../../x",
            5,
            "metadata.namespace: '../../x'; write lower-case",
        ),
        ("  name: travel", "  name: travel\n  namespace: team.a", 5, "metadata.namespace: 'team.a'; write lower-case"),
        ("  name: travel", "  name: travel\n  namespace: 5", 5, "metadata.namespace: 5; write lower-case"),
        ("  name: travel", "  name: travel\n  labels: [a]", 5, "metadata.labels: not a map; write KEY: VALUE"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert words in caught.value.message
    assert f"job.yaml:{line}" in caught.value.message
    assert caught.value.advice


@pytest.mark.parametrize(
    ("metadata", "content", "words"),
    [
        ("{name: data}", "data: {../../train.jsonl: a}", "data.../../train.jsonl: no key of a ConfigMap"),
        ("{name: ../../data}", "data: {train.jsonl: a}", "metadata.name: '../../data'; write lower-case"),
        ("[data]", "data: {train.jsonl: a}", "metadata.name: None; write lower-case"),
        ("{name: data}", "data: {train.jsonl: }", "data.train.jsonl: not a text"),
        ("{name: data}", "data: [a]", "data: not a map"),
        ("{name: data}", "binaryData: {a.gz: no base 64}", "binaryData.a.gz: not in base64"),
    ],
)
def test_a_mistake_in_a_config_map_is_named(tmp_path: Path, metadata: str, content: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, f"{GOOD}---\nkind: ConfigMap\nmetadata: {metadata}\n{content}\n")
    assert words in caught.value.message
    assert caught.value.advice


def test_what_kubectl_puts_into_binary_data_is_data(tmp_path: Path) -> None:
    given = read(
        tmp_path, f"{GOOD}---\nkind: ConfigMap\nmetadata: {{name: data}}\nbinaryData: {{train.jsonl: H4sI/w==}}\n"
    )
    store = Store(tmp_path / "home")
    (tmp_path / "sources").mkdir()
    store.link_claim("sources", tmp_path / "sources")
    machine.check_sources(given.job.spec, given.config_maps, store)
    store.save_config_map("default", given.config_maps["data"])
    assert jobs.data_of(store, given.job) == {"data": {"train.jsonl": b"\x1f\x8b\x08\xff"}}


def test_a_namespace_given_by_flag_is_held_to_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(GOOD)
    with pytest.raises(BadInput, match=r"metadata\.namespace: '\.\./x'"):
        manifests.read([str(tmp_path / "job.yaml")], namespace="../x")


def test_a_mistake_is_named_once(tmp_path: Path) -> None:
    """Also where a whole number or a text may stand, and the library complains of both."""
    with pytest.raises(BadInput) as caught:
        read(tmp_path, GOOD.replace("epochs: 3", "learningRateMultiplier: 0.5"))
    assert len(caught.value.message.splitlines()) == 1


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, GOOD.replace("epochs: 3", "epoch: 3").replace("name: travel", "name: T"))
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", None, "there is no FineTuneJob; found: nothing"),
        (DATA, None, "there is no FineTuneJob; found: ConfigMap"),
        (f"{GOOD}---\n{GOOD.replace('name: travel', 'name: other')}", None, "2 FineTuneJobs (travel, other)"),
        (GOOD, "other", "there is no FineTuneJob other"),
        ("- a\n- b\n", None, "not a Kubernetes object"),
    ],
)
def test_there_must_be_one_job(tmp_path: Path, text: str, name: str | None, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text, name)
    assert words in caught.value.message


def test_a_job_is_chosen_by_name(tmp_path: Path) -> None:
    two = f"{GOOD}---\n{GOOD.replace('name: travel', 'name: other')}"
    assert read(tmp_path, two, "other").job.metadata.name == "other"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("examples/travle/demo.yaml", "examples/travel/demo.yaml"),
        ("exmaples/travle/dmeo.yaml", "examples/travel/demo.yaml"),
        ("examples/travel/demo.yml", "examples/travel/demo.yaml"),
        ("examples/travel/none.yaml", None),  # demo.yaml has the same ending, and nothing else in common
        ("examples/travel/demo.yaml/more", None),
    ],
)
def test_a_file_that_is_not_there(tmp_path: Path, wrong: str, right: str | None) -> None:
    (tmp_path / "examples" / "travel").mkdir(parents=True)
    for name in ("demo.yaml", "demo.jsonl"):
        (tmp_path / "examples" / "travel" / name).touch()
    with pytest.raises(BadInput) as caught:
        manifests.read([str(tmp_path / wrong)])
    assert caught.value.advice == (f"did you mean {tmp_path / right}?" if right else ADVICE)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("faqs.csv", "question;answer\nWhere?;Here\n", "columns: {prompt: question, completion: answer}"),
        ("faqs.csv", '"What was asked",answer\n', 'columns: {prompt: "What was asked", completion: answer}'),
        ("chats.jsonl", '{"messages": []}\n', "task: Chat "),
        ("mails.json", '[{"text": "a", "label": "b"}, {"text": "c"}]', "task: Classification "),
        ("train.parquet", "PAR1", "train: {source: pvc://data/train.parquet}"),
        ("german.jsonl", '{"source": "a", "target": "b"}\n', "source: hf://google/flan-t5-base"),
    ],
)
def test_data_in_place_of_a_job_is_answered_with_a_job(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput) as caught:
        manifests.read([str(tmp_path / name)])
    assert f"{name} is data, not a job" in caught.value.message
    assert words in caught.value.advice
    job = tmp_path / "job.yaml"
    job.write_text(caught.value.advice.split("\n\n", 1)[1])
    given = manifests.read([str(job)])  # what is offered is right
    assert given.job.spec.dataset.train.source == f"pvc://data/{name}"


def test_a_data_file_with_a_blank_in_its_name_is_answered_with_what_works(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "my chats.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(BadInput) as caught:
        manifests.read([str(folder / "my chats.jsonl")])
    assert f"mv '{folder}/my chats.jsonl' '{folder}/my-chats.jsonl'" in caught.value.advice
    assert f"--claim 'data={folder}'" in caught.value.advice
    read(tmp_path, caught.value.advice.partition("\n\n")[2])


@pytest.mark.parametrize("token", ["2026-01-15", "2026-13-45", "2026-01-15T10:00:00Z"])
def test_a_date_is_a_text_as_it_is_to_kubectl(tmp_path: Path, token: str) -> None:
    text = GOOD.replace("spec:\n", f"spec:\n  rerunToken: {token}\n")
    if ":" in token:  # a text, and not one that a token may be
        with pytest.raises(BadInput, match="rerunToken: '2026-01-15T10:00:00Z'"):
            read(tmp_path, text)
    else:
        assert read(tmp_path, text).job.spec.rerun_token == token


def test_a_list_is_what_is_in_it(tmp_path: Path) -> None:
    """As `kubectl get -o yaml` and `finetune status -o yaml` write several objects."""
    listed = {"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(GOOD), *yaml.safe_load_all(DATA)]}
    given = read(tmp_path, yaml.safe_dump(listed))
    assert given.job.metadata.name == "travel"
    assert given.config_maps["data"]["data"]
    with pytest.raises(BadInput, match=r"job\.yaml:\d+: spec\.hyperparameters\.epochs: 0"):
        read(tmp_path, yaml.safe_dump(listed).replace("epochs: 3", "epochs: 0"))
    with pytest.raises(BadInput, match=r"job\.yaml:3: not a Kubernetes object"):
        read(tmp_path, "kind: List\nitems:\n- a\n")
    with pytest.raises(BadInput, match="found: nothing"):
        read(tmp_path, "kind: List\nitems:\n")


def test_what_means_nothing_here_is_named_by_what_it_has(tmp_path: Path) -> None:
    others = "---\nkind: Secret\nmetadata: {name: hub}\n---\nkind: Kustomization\n---\nimage: {tag: a}\n"
    assert read(tmp_path, GOOD + others).ignored == ("Secret hub", "Kustomization", "an object without a kind")


def test_a_job_in_json_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(yaml.safe_load(GOOD)))
    assert manifests.read([str(tmp_path / "job.json")]).job.metadata.name == "travel"


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yml").write_text(DATA)
    (tmp_path / "folder.yaml").mkdir()
    assert manifests.read([str(tmp_path)]).config_maps
    (tmp_path / "c.yaml").write_bytes(b"a: \xff")
    with pytest.raises(BadInput, match=r"c\.yaml: is not text in UTF-8"):
        manifests.read([str(tmp_path)])


@pytest.mark.parametrize(
    ("config_maps", "words"),
    [
        ({}, "ConfigMap data is in none of the files"),
        ({"data": {"data": {"other.jsonl": ""}}}, "has no key train.jsonl; it has: other.jsonl"),
    ],
)
def test_what_the_job_names_must_be_there(
    tmp_path: Path, config_maps: dict[str, dict[str, object]], words: str
) -> None:
    job = read(tmp_path, GOOD).job
    with pytest.raises(BadInput) as caught:
        machine.check_sources(job.spec, config_maps, Store(tmp_path))
    assert words in caught.value.message
    assert "does not know the claim sources" in caught.value.message
    assert "--claim sources=FOLDER" in caught.value.advice


def test_without_a_gpu_the_processor_trains_and_it_is_said(tmp_path: Path) -> None:
    job = read(tmp_path, GOOD).job
    here, notes = machine.adapted(job, gpus=0, replicas=0)
    assert (here.spec.compute.gpus, here.spec.serving.replicas) == (0, 0)
    assert "compute.gpus is 0 here" in notes[0]
    assert machine.adapted(job, gpus=1, replicas=0)[0].spec.compute.gpus == 1


def test_what_starts_runs_by_itself_is_left_to_a_cluster_and_said(tmp_path: Path) -> None:
    text = GOOD.replace("output:", "triggers: {schedule: {cron: 0 2 * * SUN}, datasetPoll: {}}\n  output:")
    here, notes = machine.adapted(read(tmp_path, text).job, gpus=1, replicas=0)
    assert (here.spec.triggers.schedule, here.spec.triggers.dataset_poll) == (None, None)
    assert ["triggers.schedule is for a cluster" in notes[0], "write a new spec.rerunToken" in notes[1]] == [True, True]


@pytest.mark.parametrize(("gpus", "strategy"), [(0, "auto"), (1, "auto"), (2, "ZeRO3"), (8, "ZeRO3")])
def test_a_job_for_many_gpus_takes_those_that_are_there(tmp_path: Path, gpus: int, strategy: str) -> None:
    text = GOOD.replace("output:", "compute: {gpus: 4, distribution: {strategy: ZeRO3}}\n  output:")
    here, notes = machine.adapted(read(tmp_path, text).job, gpus=gpus, replicas=0)
    assert (here.spec.compute.gpus, here.spec.compute.distribution.strategy) == (min(gpus, 4), strategy)
    assert bool(notes) is (gpus < 4)


@pytest.mark.parametrize(
    ("budget", "gpus", "left", "said"),
    [
        ("{maxGpuHours: 2}", 1, "2", ""),
        ("{maxGpuHours: 2, maxCost: 9}", 1, "2", "budget.maxCost is not kept here"),
        ("{maxCost: 9}", 1, None, "budget.maxCost is not kept here"),
        ("{maxGpuHours: 2}", 0, None, "budget is not kept here"),
    ],
)
def test_of_a_budget_a_laptop_keeps_what_it_can_count(
    tmp_path: Path, budget: str, gpus: int, left: str | None, said: str
) -> None:
    text = GOOD.replace("output:", f"budget: {budget}\n  compute: {{gpus: 1}}\n  output:")
    here, notes = machine.adapted(read(tmp_path, text).job, gpus=gpus, replicas=0)
    kept = here.spec.budget
    assert (str(kept.max_gpu_hours) if kept else None) == left
    assert (said in " ".join(notes)) if said else not any("budget" in note for note in notes)
    assert type(here).model_validate_json(here.model_dump_json(by_alias=True)).spec == here.spec
