"""`finetune-operator`: the control plane in a cluster. Configured by environment variables only."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from finetune_operator.control.environment import EnvironmentInvalidError, read_environment
from finetune_operator.control.logs import configure_logs
from finetune_operator.control.operator import operate
from finetune_operator.decide import decide


def main() -> None:
    """Runs until SIGTERM. Exit code 0 after an orderly end, 1 after a fault, 2 for a wrong environment."""
    try:
        environment = read_environment(os.environ)
    except EnvironmentInvalidError as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        sys.exit(2)
    configure_logs(environment.log_format, environment.log_level)
    # Not asyncio.run: it waits for all tasks that are left, and kopf's streams may go on when they are cancelled.
    code = asyncio.new_event_loop().run_until_complete(operate(environment, decide))
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
