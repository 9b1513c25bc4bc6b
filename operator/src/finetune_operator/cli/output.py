"""The forms of -o. In a file of its own, because every command line needs it and nothing else with it."""

from enum import StrEnum


class Output(StrEnum):
    """-o"""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"
