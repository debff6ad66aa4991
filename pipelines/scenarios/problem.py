"""What is wrong with a pack, and where."""

from __future__ import annotations

from dataclasses import dataclass

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
