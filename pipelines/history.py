"""`history.jsonl` of a training: what was noted at each step, one event a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path


def read_history(path: Path) -> tuple[tuple[int, dict[str, float]], ...]:
    """The figures of every event, with its step; none where there is no file.

    What cannot be read is left out: a process that was killed leaves half a line, and a figure that was none is `null`
    or `NaN`. Whoever shows a training shows the rest of it.
    """
    return tuple(_events(path.read_bytes())) if path.is_file() else ()


def _events(content: bytes) -> Iterator[tuple[int, dict[str, float]]]:
    for line in content.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(at := event.pop("step", None), int):
            yield at, {name: float(value) for name, value in event.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
