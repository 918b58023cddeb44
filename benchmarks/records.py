"""Records of measurements as JSON that can be read and compared line by line: an entry of a table is a line."""

import json
from pathlib import Path
from typing import Any


def text_of(record: dict[str, Any]) -> str:
    """The record's own entries one after the other; those of a table or list in it, a line each."""
    parts = []
    for name, value in record.items():
        text = json.dumps(value)
        if value and isinstance(value, dict):
            rows = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
            text = "{\n  " + ",\n  ".join(rows) + "\n }"
        elif value and isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(record: dict[str, Any], path: Path) -> None:
    path.write_text(text_of(record))
