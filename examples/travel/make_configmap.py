"""Write ``dataset.yaml``, the ConfigMap with the two data files of this folder, and say when it is too large.

Run it after changing the data: ``python examples/travel/make_configmap.py``. It needs nothing but Python, and does
what ``kubectl create configmap travel-dataset --from-file=train.jsonl --from-file=validation.jsonl`` would do.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FILES = ("train.jsonl", "validation.jsonl")
# The API server takes objects up to 1 MiB; what client-side apply adds is kept out of it by server-side apply.
LIMIT = 900 * 1024


def render(folder: Path) -> str:
    """Return the ConfigMap's YAML; raise ValueError when it is larger than a ConfigMap can hold."""
    lines = [
        "# Made by make_configmap.py from the files beside it. Apply with: kubectl apply --server-side -f dataset.yaml",
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        "  name: travel-dataset",
        "data:",
    ]
    for name in FILES:
        lines.append(f"  {name}: |")
        lines += [f"    {line}" for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    text = "\n".join(lines) + "\n"
    if len(text.encode()) > LIMIT:
        raise ValueError(f"the data of {folder} is over {LIMIT} bytes as a ConfigMap: use a volume or a bucket instead")
    return text


if __name__ == "__main__":
    (FOLDER / "dataset.yaml").write_text(render(FOLDER), encoding="utf-8")
    print(f"wrote {FOLDER / 'dataset.yaml'}", file=sys.stderr)
