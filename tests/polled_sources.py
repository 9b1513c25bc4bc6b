"""Looks at the sources of a run's data, as the pod makes them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from finetune_api.dataset import DataFile
from finetune_api.reports import Summary, parse_summary
from finetune_api.run_config import RunConfig, SourcePolicy
from finetune_trainer import polling
from tests.prepared_runs import CHATS, Laptop, lines

LOCAL = SourcePolicy(https_hosts=["localhost"], allow_private_addresses=True)
ROWS = lines(CHATS)


@dataclass
class Poll:
    """Looks at one file, as the pod does."""

    root: Path
    config: RunConfig

    def look(self, known: str | None = None, sha256: str | None = None, code: int = 0) -> Summary:
        order = {"fingerprint": known, "sha256": sha256}
        told = json.dumps({key: value for key, value in order.items() if value is not None})
        path, log = self.root / "run.json", self.root / "termination-log"
        path.write_text(self.config.model_dump_json(by_alias=True))
        ended = polling.run(path, {polling.VARIABLE: told}, self.root / "sources", log, pause=0.01)
        summary = parse_summary(log.read_text())
        assert summary is not None
        assert (ended, summary.ok) == (code, code == 0), log.read_text()
        return summary

    def found(self, known: str | None = None, sha256: str | None = None) -> str:
        dataset = self.look(known, sha256).dataset
        assert dataset is not None
        assert dataset.fingerprint is not None
        return dataset.fingerprint


def poll(root: Path, data: DataFile, policy: SourcePolicy = LOCAL) -> Poll:
    """A run whose training data this is."""
    laptop = Laptop(root, root)
    return Poll(root, laptop.context(data, policy=policy).config)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
