"""Logs for people (key=value) or for machines (JSON lines). No secret and no text of a dataset ever gets here."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime

PAIR = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S+)")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the key=value pairs of a message become fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        line = {
            **{key: value.strip("'\"") for key, value in PAIR.findall(text)},  # first: no text may pass for our fields
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": text,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logs(log_format: str, level: str) -> None:
    """Sends the process's logs to the error stream."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    text.converter = time.gmtime
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf tells every event at INFO or DEBUG, aiohttp every request
    for name in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
