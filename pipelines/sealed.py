"""The sealed test split is worn by every look at it: each decision is noted, and a quota of candidates kept.

One file for each split and for each scenario pack, `sealed/<digest>.jsonl` in the home, that is only ever appended to.
A look at several at once counts for each.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport
from pipelines.system.durable import append_line


class Attempt(BaseModel):
    """One decision of the gate: a line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    run: str
    """Name of the run, or of the report that was judged alone."""

    model: str
    """Digest of the candidate."""

    reference: str
    """What it was compared with, by name."""

    reference_model: str
    """Its digest."""

    outcome: str


@dataclass(frozen=True)
class SealedSplit:
    """The looks at one test split, or at one scenario pack."""

    file: Path
    name: str = "this test split"
    """What errors call it."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One decision at a time, so that no two take the last attempt; a dead process holds no lock."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def attempts(self) -> tuple[Attempt, ...]:
        """Every decision so far, the oldest first.

        Raises:
            BadInput: A line is no attempt; what cannot be counted is not taken for nothing.
        """
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        return tuple(self._attempt(number, line) for number, line in enumerate(lines, 1))

    def require_attempt(self, model: str, reference_model: str, quota: int) -> None:
        """Refuse a candidate beyond the quota; one that was judged before is not counted twice.

        Args:
            model: Digest of the candidate.
            reference_model: Digest of what it is compared with; each reference has its own quota.
            quota: Different candidates that may be judged, `gate.attempts`.

        Raises:
            BadInput: The quota is spent.
        """
        judged = {attempt.model for attempt in self.attempts() if attempt.reference_model == reference_model}
        if model not in judged and len(judged) >= quota:
            raise BadInput(
                f"{len(judged)} candidates were judged on {self.name} against the same reference, and "
                f"gate.attempts is {quota} (they are listed in {self.file}). One more may pass by luck: bring new "
                f"test items, or raise gate.attempts in the config and say there why"
            )

    def note(self, attempt: Attempt) -> None:
        """Append a decision, under `locked`; durable on return."""
        append_line(self.file, attempt.model_dump_json())

    def _attempt(self, number: int, line: str) -> Attempt:
        try:
            return Attempt.model_validate_json(line)
        except ValidationError:
            raise BadInput(
                f"{self.file}, line {number}: no record of a gate's decision: {line[:80]!r}; mend or remove that line"
            ) from None


@contextmanager
def locked_splits(folder: Path, report: EvalReport) -> Iterator[tuple[SealedSplit, ...]]:
    """Everything sealed that a report's answers show, locked, always in the same order: no two wait for each other.

    Each by its own digest: another choice of scenarios beside the same test split is no new test split.

    Args:
        folder: `Settings.sealed`.
        report: Of the candidate.
    """
    named = {scenario.digest: f"scenario {scenario.name}" for scenario in report.scenarios}
    named[report.data_digest or report.test_digest] = SealedSplit.name
    with ExitStack() as locks:
        splits = tuple(SealedSplit(folder / f"{digest}.jsonl", name) for digest, name in sorted(named.items()))
        for split in splits:
            locks.enter_context(split.locked())
        yield splits
