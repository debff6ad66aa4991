"""What an evaluation found: answers, scores and the report of one candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.artifact import Artifact
from pipelines.config_gate import Limit, Requirement
from pipelines.parity import Agreement

COMPLETE = frozenset({"stop", "length"})
"""The finish reasons of an answer that the model itself ended."""


class Score(Artifact):
    """Right answers of a slice, with a two-sided 95 % interval."""

    correct: float
    """Right answers, or the sum of grades of 0 to 1 where an answer can be right in part."""

    n: int
    low: float
    """Wilson's for right answers; for grades by `pipelines.grades.mean_bounds`."""

    high: float

    @property
    def share(self) -> float:
        """Right answers of all, or the mean grade: 0 to 1."""
        return self.correct / self.n


class Evaluation(Artifact):
    """One model measured as it was served."""

    subject: Literal["base", "merged", "candidate", "champion"]
    model_digest: str
    scheme: str
    """That it was served in."""

    answers: Path
    """Parquet, an `Answer` a row; JSONL in reports of earlier versions."""

    scores: dict[str, Score]
    """By slice."""

    metrics: dict[str, Score] = Field(default_factory=dict)
    """Shares of answers that are marked, such as `catalog/attributes/schema_valid` or `x-ray/sensitivity/fracture`."""

    start_seconds: float
    answer_seconds: float
    requests_per_minute: float
    latency_p50_ms: float
    latency_p99_ms: float
    peak_gib: float
    """Peak memory: in use of the card, or on a CPU resident of the engine's processes."""

    parity: Agreement | None = None
    """Of its predictions with those of the base with its adapter, where the export step left some to compare with."""


class Answer(Artifact):
    """One answered question."""

    item: str
    slice: str
    expected: str
    text: str
    finish_reason: str
    seconds: float
    cluster: str | None = None
    """Digest of the images that were shown; questions about the same ones are not independent. None: of its own."""

    score: float | None = Field(None, ge=0, le=1)
    """What the scorer of its scenario gave. None: exact match decides, white space at the ends apart."""

    marks: dict[str, bool] = Field(default_factory=dict)
    """What else its scorer says of it, such as `schema_valid` or `abstained`, by name."""

    prompt_tokens: int | None = None
    """As the engine counts them, visual ones included. None: it did not say."""

    answer_tokens: int | None = None
    request_bytes: int | None = None
    """Of the request's body, images included."""

    @property
    def correct(self) -> bool:
        """Wholly right."""
        return self.text.strip() == self.expected.strip() if self.score is None else self.score == 1

    @property
    def grade(self) -> float:
        """How right it is, 0 to 1."""
        return float(self.correct) if self.score is None else self.score


class Scenario(Artifact):
    """A scenario pack that was asked, with the rules that it brings to the gate."""

    name: str
    digest: str
    """Of its items, images and scorers."""

    requirements: tuple[Requirement, ...]
    """For each of its slices."""

    limits: tuple[Limit, ...] = ()


class EvalReport(Artifact):
    """The candidate, the merged bf16 model and the base, measured by one engine on the same questions.

    The champion too, where it was registered with others.
    """

    engine: str
    """Engine and version."""

    test_digest: str
    """Of the sealed questions, those of the scenarios included."""

    data_digest: str | None = None
    """Of the data set's sealed questions alone. None: of a report that did not say."""

    prompt_digest: str
    """Of chat template, pixel limits and decoding: two reports compare only if it is equal."""

    evaluations: tuple[Evaluation, ...]
    golden: Path
    """JSONL of questions with the candidate's answers, for the probe at promotion."""

    golden_digest: str | None = None
    """Of it and of the images that it names, as they were written. None: of a report that did not say."""

    served_parity: Agreement | None = None
    """The candidate's."""

    scenarios: tuple[Scenario, ...] = ()
    """That were asked beside the test split."""

    concurrency: int | None = None
    """Questions in flight: latencies compare only if it is equal. None: of a report that did not say."""

    hardware: str | None = None
    """Name of the hardware profile; times and memory compare only if it is equal. None: of a report that did not say.
    """

    flags: str | None = None
    """Digest of the engine's flags, as for `hardware`."""

    champion_unmeasured: str | None = None
    """What kept the champion from being asked where its own report may not do, and the way out. None: nothing did."""

    def subject(self, name: str) -> Evaluation | None:
        """The evaluation of `base`, `merged`, `candidate` or `champion`, or None when it was not measured."""
        return next((e for e in self.evaluations if e.subject == name), None)
