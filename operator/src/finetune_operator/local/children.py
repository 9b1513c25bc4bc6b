"""The children of a job, as an API server would list them, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune_operator.local.store import write_json
from finetune_operator.plan import Manifest, Observed, ProgressReport


@dataclass(slots=True)
class Children:
    """By name. Changed in place by the backend, which is the only one who does."""

    jobs: dict[str, Manifest] = field(default_factory=dict)
    pods: list[Manifest] = field(default_factory=list)
    config_maps: dict[str, Manifest] = field(default_factory=dict)
    deployments: dict[str, Manifest] = field(default_factory=dict)
    services: dict[str, Manifest] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Children:
        """What was saved. Without a readable file there is nothing: every stage finds its own report again."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        content = asdict(self)
        if not path.exists() or asdict(self.load(path)) != content:
            write_json(path, content)

    def shelf(self, kind: str) -> dict[str, Manifest]:
        """The objects of a kind that a Plan can name."""
        return {
            "Job": self.jobs,
            "ConfigMap": self.config_maps,
            "Deployment": self.deployments,
            "Service": self.services,
        }[kind]

    def pods_of(self, owner: Manifest) -> list[Manifest]:
        """The owner's pods, oldest first."""
        uid = owner["metadata"]["uid"]
        return [pod for pod in self.pods if any(o["uid"] == uid for o in pod["metadata"]["ownerReferences"])]

    def replace(self, pod: Manifest) -> None:
        """Put the pod in the place of its older state."""
        uids = [old["metadata"]["uid"] for old in self.pods]
        self.pods[uids.index(pod["metadata"]["uid"])] = pod

    def observed(self, progress: ProgressReport | None) -> Observed:
        return Observed(
            jobs=dict(self.jobs),
            pods=tuple(self.pods),
            config_maps=dict(self.config_maps),
            deployments=dict(self.deployments),
            services=dict(self.services),
            progress=progress,
        )
