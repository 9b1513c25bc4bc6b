"""`python -m finetune_api generate`: writes what is made out of the types; with --check it only compares.

Run it in the root of the repository. `crd`, `reference`, `run-schema` and `troubleshooting` print one part instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune_api.crd import chart_template, crd_yaml, run_schema_json
from finetune_api.reference import reference_page
from finetune_api.troubleshooting import troubleshooting_page

PRINTED = {
    "crd": crd_yaml,
    "reference": reference_page,
    "run-schema": run_schema_json,
    "troubleshooting": troubleshooting_page,
}
FILES = {
    "crds/finetunejobs.yaml": crd_yaml,
    "charts/finetune-operator/templates/crds/finetunejobs.yaml": chart_template,
    "docs/reference.md": reference_page,
    "docs/run.schema.json": run_schema_json,
    "docs/troubleshooting.md": troubleshooting_page,
}


def main(arguments: list[str] | None = None) -> int:
    """0 when done, 1 when --check found a file that is out of date."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api", description=__doc__)
    parser.add_argument("what", choices=["generate", *PRINTED])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    options = parser.parse_args(arguments)
    if options.what != "generate" and not options.check:
        sys.stdout.write(PRINTED[options.what]())
        return 0
    wanted = FILES if options.what == "generate" else {k: v for k, v in FILES.items() if v is PRINTED[options.what]}
    texts = {options.root / name: make() for name, make in wanted.items()}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if options.check:
        for path in stale:
            print(f"{path} is out of date: run `python -m finetune_api generate` and commit it", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
