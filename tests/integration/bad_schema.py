"""Mistakes that break the schema itself; the words are the API server's. Rows as in bad_manifests."""

from __future__ import annotations

from tests.integration.bad_manifests import Bad

THEIRS = (
    Bad("no model", "baseModel: null", "spec.baseModel", "Required value"),
    Bad("no data", "dataset: null", "spec.dataset", "Required value"),
    Bad("no training part", "dataset: {train: null}", "spec.dataset.train", "Required value"),
    Bad("no output", "output: null", "spec.output", "Required value"),
    Bad("no claim", "output: {claimName: null}", "spec.output.claimName", "Required value"),
    Bad(
        "a ConfigMap without a key", "dataset: {train: {configMapRef: {name: a}}}", "configMapRef.key", "Required value"
    ),
    Bad("an unknown task", "task: Reinforcement", "spec.task", 'supported values: "Chat", "Completion", "Preference"'),
    Bad("a task in small letters", "task: chat", "spec.task", 'supported values: "Chat", "Completion"'),
    Bad("an unknown method", "method: {type: IA3}", "spec.method.type", '"LoRA", "QLoRA", "DoRA", "Full"'),
    Bad("an unknown beginning", "method: {initialization: pissa}", "method.initialization", '"default", "gaussian"'),
    Bad("no beta at all", "{task: Preference, hyperparameters: {beta: '0'}}", "hyperparameters.beta", "should match"),
    Bad("too much beta", "{task: Preference, hyperparameters: {beta: '2.1'}}", "hyperparameters.beta", "should match"),
    Bad("a column without a name", "dataset: {columns: {text: ''}}", "dataset.columns.text", "at least 1 chars long"),
    Bad("a column that no task has", "dataset: {columns: {txt: body}}", "columns.txt", "unknown field"),
    Bad("an unknown engine", "serving: {engine: TGI}", "spec.serving.engine", '"auto", "Native", "VLLM"'),
    Bad(
        "an empty smoke test", "serving: {smokeTest: {prompt: ''}}", "serving.smokeTest.prompt", "at least 1 chars long"
    ),
    Bad("no run kept", "output: {retention: {keepRuns: 0}}", "output.retention.keepRuns", "or equal to 1"),
    Bad("no age", "output: {retention: {maxAgeDays: 0}}", "output.retention.maxAgeDays", "or equal to 1"),
    Bad("no time for servers", "serving: {progressDeadlineSeconds: 5}", "progressDeadlineSeconds", "or equal to 60"),
    Bad("an unknown metric", "evaluation: {gate: {rules: [{metric: f1, max: '1'}]}}", "rules[0].metric", '"loss"'),
    Bad("packing as a switch", "hyperparameters: {packing: true}", "packing", 'must be of type string: "boolean"'),
    Bad(
        "two checks of one name",
        "evaluation: {checks: [{name: a, maxWords: 1}, {name: a, maxWords: 2}]}",
        "spec.evaluation.checks[1]",
        "Duplicate value",
    ),
    Bad(
        "a check without a name", "evaluation: {checks: [{maxWords: 1}]}", "spec.evaluation.checks[0].name", "Required"
    ),
    Bad(
        "a key in the judge's URL",
        "evaluation: {judge: {url: 'https://user:key@llm.example.com/v1', model: m}}",
        "spec.evaluation.judge.url",
        "should match",
    ),
    Bad("an unknown baseline", "evaluation: {baselines: [Other]}", "spec.evaluation.baselines[0]", '"Base", "FewShot"'),
    Bad(
        "a benchmark twice",
        "evaluation: {benchmarks: [{task: hellaswag}, {task: hellaswag, limit: 7}]}",
        "spec.evaluation.benchmarks[1]",
        "Duplicate value",
    ),
    Bad("a baseline twice", "evaluation: {baselines: [Base, Base]}", "spec.evaluation.baselines[1]", "Duplicate value"),
    Bad(
        "an export twice",
        "output: {exports: [{name: a}, {name: a, precision: Float32}]}",
        "spec.output.exports[1]",
        "Duplicate value",
    ),
    Bad("an export in capitals", "output: {exports: [{name: Whole}]}", "spec.output.exports[0].name", "should match"),
    Bad("an unknown format", "output: {exports: [{name: a, format: Pickle}]}", "exports[0].format", '"Safetensors"'),
    Bad("a layer twice", "method: {targetModules: [q, q]}", "spec.method.targetModules[1]", "Duplicate value"),
    Bad("no layer", "method: {targetModules: []}", "spec.method.targetModules", "should have at least 1 items"),
    Bad("another scheme", "baseModel: {source: 'gs://bucket/model'}", "spec.baseModel.source", "should match"),
    Bad("a host path", "baseModel: {source: /models/base}", "spec.baseModel.source", "should match"),
    Bad(
        "plain http", "dataset: {train: {source: 'http://example.com/x'}}", "spec.dataset.train.source", "should match"
    ),
    Bad(
        "a branch as revision", "baseModel: {revision: main}", "spec.baseModel.revision", "should be at least 40 chars"
    ),
    Bad("a name with a slash", "baseModel: {secretRef: {name: other/token}}", "secretRef.name", "should match"),
    Bad("an empty claim", "output: {claimName: ''}", "spec.output.claimName", "should be at least 1 chars long"),
    Bad("a fraction of nearly all", "dataset: {validation: {fraction: 0.9}}", "fraction", "less than or equal to 0.5"),
    Bad("a fraction in quotes", "dataset: {validation: {fraction: '0.1'}}", "fraction", 'type number: "string"'),
    Bad("cleaning by another word", "dataset: {cleaning: {duplicates: Remove}}", "duplicates", "supported values"),
    Bad("a similarity of little", "dataset: {cleaning: {similarity: '0.1'}}", "cleaning.similarity", "should match"),
    Bad(
        "all may be dropped",
        "dataset: {cleaning: {maxDroppedPercent: 0}}",
        "maxDroppedPercent",
        "greater than or equal to 1",
    ),
    Bad("secrets that are hidden", "dataset: {sensitiveData: Hide}", "sensitiveData", "supported values"),
    Bad(
        "an empty label", "{task: Classification, dataset: {cleaning: {fill: {label: ''}}}}", "fill.label", "at least 1"
    ),
    Bad("150 percent", "dataset: {maxLostPercent: 150}", "maxLostPercent", "less than or equal to 100"),
    Bad("rank 0", "method: {rank: 0}", "spec.method.rank", "greater than or equal to 1"),
    Bad("rank in quotes", "method: {rank: '16'}", "spec.method.rank", 'must be of type integer: "string"'),
    Bad("a dropout of 1", "method: {dropout: '1.0'}", "spec.method.dropout", "should match"),
    Bad(
        "a dropout without quotes", "method: {dropout: 0.1}", "spec.method.dropout", 'must be of type string: "number"'
    ),
    Bad(
        "a multiplier without quotes", "hyperparameters: {learningRateMultiplier: 1.8}", "Multiplier", "integer,string"
    ),
    Bad("half an epoch", "hyperparameters: {epochs: 2.5}", "hyperparameters.epochs", "integer,string"),
    Bad("a negative seed", "hyperparameters: {seed: -1}", "spec.hyperparameters.seed", "greater than or equal to 0"),
    Bad("17 GPUs", "compute: {gpus: 17}", "spec.compute.gpus", "less than or equal to 16"),
    Bad("no process", "compute: {gpus: 0, processes: 0}", "spec.compute.processes", "greater than or equal to 1"),
    Bad("17 processes", "compute: {gpus: 0, processes: 17}", "spec.compute.processes", "less than or equal to 16"),
    Bad(
        "a strategy in another writing",
        "compute: {gpus: 2, distribution: {strategy: zero3}}",
        "spec.compute.distribution.strategy",
        "supported values",
    ),
    Bad("a resource without a vendor", "compute: {gpuResource: gpu}", "spec.compute.gpuResource", "should match"),
    Bad("too short a deadline", "compute: {activeDeadlineSeconds: 5}", "activeDeadlineSeconds", "than or equal to 60"),
    Bad("a label's value with a blank", "compute: {nodeSelector: {zone: a b}}", "nodeSelector.zone", "should match"),
    Bad(
        "an improvement without percent",
        "evaluation: {gate: {rules: [{metric: loss, minImprovement: '5'}]}}",
        "minImprovement",
        "should match",
    ),
    Bad(
        "a bound without quotes",
        "evaluation: {gate: {rules: [{metric: loss, max: 1.5}]}}",
        "rules[0].max",
        'type string: "number"',
    ),
    Bad(
        "no measured example",
        "evaluation: {maxExamples: 0}",
        "spec.evaluation.maxExamples",
        "greater than or equal to 1",
    ),
    Bad("too many replicas", "serving: {replicas: 100}", "spec.serving.replicas", "less than or equal to 32"),
    Bad("run 0", "serving: {run: 0}", "spec.serving.run", "greater than or equal to 1"),
    Bad("a token with a blank", "rerunToken: once more", "spec.rerunToken", "should match"),
    Bad("too long a token", f"rerunToken: {'a' * 65}", "spec.rerunToken", "may not be more than 64 bytes"),
    Bad("too long a source", f"baseModel: {{source: 'pvc://m/{'a' * 1024}'}}", "spec.baseModel.source", "Too long"),
    Bad("a wrong effect", "compute: {tolerations: [{operator: Exists, effect: Never}]}", "effect", '"NoExecute"'),
    Bad("a misspelt field", "hyperparameter: {epochs: 3}", "spec.hyperparameter", "unknown field"),
    Bad("code", "baseModel: {trustRemoteCode: true}", "spec.baseModel.trustRemoteCode", "unknown field"),
    Bad("a service account", "compute: {serviceAccountName: admin}", "serviceAccountName", "unknown field"),
    Bad("another namespace", "output: {namespace: team-b}", "spec.output.namespace", "unknown field"),
    Bad("GPUs as a resource", "compute: {resources: {limits: {nvidia.com/gpu: 1}}}", "nvidia.com/gpu", "unknown field"),
    Bad("a list for an object", "method: [LoRA]", "spec.method", "must be of type object"),
)
