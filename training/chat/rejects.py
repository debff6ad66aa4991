"""Why a row is not used, and where it stood."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.artifacts import Reject


@dataclass(frozen=True, order=True)
class Origin:
    """Where a row came from."""

    file: str
    """Relative to the source's folder."""

    line: int
    """Line of the file, item of its array or row of its table, from 1."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Unusable(ValueError):
    """A row that cannot be used: a reason to count by and a detail to find it by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def reject(origin: Origin, reason: str, detail: str) -> Reject:
    """The record of a row that was set aside."""
    return Reject(file=origin.file, line=origin.line, reason=reason, detail=detail)
