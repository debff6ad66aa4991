"""What is wrong with a pack, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BadInput

PACK = "pack.yaml"
ITEMS = "items.jsonl"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing to mend."""

    file: str
    line: int
    """From 1."""

    text: str
    """What is wrong, the value seen, what would be right."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


def bad_input(origin: Path, problems: Sequence[Problem]) -> BadInput:
    """The error that lists them all.

    Args:
        origin: The folder or file that they are of.
    """
    return BadInput("\n  ".join([f"{origin}: {len(problems)} problem(s)", *map(str, problems)]))
