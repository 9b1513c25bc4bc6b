"""Half of the kubernetes package, which this process has no use for: 20 MiB, and a fifth of its start.

Whoever imports `kubernetes`, or anything below it, imports the synchronous client with requests, OAuth and WebSockets,
and what these import where it is installed (chardet, google.auth). We use `kubernetes.aio`; kopf imports
`kubernetes.client` to know its models when it is given one, and does without where there is none. Neither has a switch.
"""

from __future__ import annotations

import importlib.util
import sys

PACKAGE = "kubernetes"
SYNCHRONOUS = "kubernetes.client"


def leave_out_the_synchronous_client() -> None:
    """From now on `kubernetes` is a package that imports nothing by itself, and has no synchronous client.

    Where somebody has imported it before, nothing changes. A module that is in `sys.modules` is not executed, and None
    there means that there is none (https://docs.python.org/3/reference/import.html#the-module-cache).
    """
    spec = importlib.util.find_spec(PACKAGE) if PACKAGE not in sys.modules else None
    if spec is not None:
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        sys.modules[SYNCHRONOUS] = None  # type: ignore[assignment]
