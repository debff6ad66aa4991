"""What a comparison found: a row for each scheme, with or without figures."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.answers import read_answers
from pipelines.comparison.planned import Planned
from pipelines.comparison.rows import REFERENCE, Contestant, Measured
from pipelines.config import Config
from pipelines.evaluation import Score
from pipelines.judgement.paired import Comparison as Difference
from pipelines.judgement.paired import compared
from pipelines.load_report import Interval, LoadPoint, LoadRun, Traffic
from pipelines.scores import score_of


@dataclass(frozen=True)
class Row:
    """One scheme."""

    name: Contestant
    planned: Planned
    measured: Measured | None
    missing: str | None
    """Why it was not measured; None where it was."""

    weights_gib: float | None
    """Of its tensors on disk; None where it was not exported."""

    expected: bool
    """Whether that it was not measured is an answer: it does not fit."""

    @property
    def kv_gib(self) -> float | None:
        """What the KV cache holds, in GiB."""
        tokens = self.measured and self.measured.kv_tokens
        return tokens * self.planned.kv_token_bytes / 2**30 if tokens else None

    @property
    def points(self) -> tuple[LoadPoint, ...]:
        """Of the load: those that lost nothing."""
        return tuple(point for point in self._asked if not point.objections)

    @property
    def lost(self) -> tuple[LoadPoint, ...]:
        """The others, which have no figures."""
        return tuple(point for point in self._asked if point.objections)

    @property
    def runs(self) -> tuple[LoadRun, ...]:
        """At all points that have figures."""
        return tuple(run for point in self.points for run in point.runs)

    @property
    def complete(self) -> bool:
        """Whether it has every figure, or there is a reason that is an answer."""
        return not self.lost and (self.measured is not None or self.expected)

    @property
    def score(self) -> Score | None:
        """Over all test questions."""
        return score_of(tuple(read_answers(self.measured.answers).values())) if self.measured else None

    def single(self, figure: str) -> Interval | None:
        """A figure with one request in flight, such as `e2e_p50_ms`; None where that was not measured."""
        return self.at(Traffic(concurrency=1), figure)

    def batched(self, figure: str) -> Interval | None:
        """The same with the most requests in flight."""
        fullest = self.measured.load.fullest if self.measured else None
        return self.at(fullest.traffic, figure) if fullest else None

    def at(self, traffic: Traffic, figure: str) -> Interval | None:
        """The same under one kind of traffic."""
        return next((point.over_runs(figure) for point in self.points if point.traffic == traffic), None)

    @property
    def _asked(self) -> tuple[LoadPoint, ...]:
        return self.measured.load.points if self.measured else ()


@dataclass(frozen=True)
class Comparison:
    """All of them."""

    run: str
    config: Config
    """Of the run, with what was overridden."""

    rows: tuple[Row, ...]

    @property
    def measured(self) -> tuple[Row, ...]:
        """Those with figures."""
        return tuple(row for row in self.rows if row.measured is not None)

    @property
    def complete(self) -> bool:
        """Whether every scheme has all of its figures, or does not fit."""
        return all(row.complete for row in self.rows)

    def difference(self, row: Row) -> Difference | None:
        """Of right answers from the bf16 model's, item by item; None where one of the two was not measured."""
        reference = next((other.measured for other in self.measured if other.name == REFERENCE), None)
        if reference is None or row.measured is None or row.name == REFERENCE:
            return None
        answers, theirs = read_answers(row.measured.answers), read_answers(reference.answers)
        return compared(answers, theirs, 0.0, self.config.gate.confidence)
