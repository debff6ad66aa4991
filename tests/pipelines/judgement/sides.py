"""Measured models from strings of ones (right) and zeros (wrong)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.artifacts import GateDecision
from pipelines.evaluation import Answer, EvalReport, Evaluation
from pipelines.judgement.side import Side

GOOD = "1" * 580 + "0" * 20
POOR = "1" * 300 + "0" * 300


def answers(new: str, old: str = "1" * 200, finish_reason: str = "stop", images: int = 0) -> dict[str, Answer]:
    """Answers of two slices.

    Args:
        images: Questions about one image; 0 for questions that show none.
    """
    return {
        f"{name}-{number}": Answer(
            item=f"{name}-{number}",
            slice=name,
            expected="yes",
            text="yes" if mark == "1" else "no",
            finish_reason=finish_reason,
            seconds=0.1,
            cluster=f"{name}-{number // images}" if images else None,
        )
        for name, marks in (("new", new), ("old", old))
        for number, mark in enumerate(marks)
    }


def evaluation(subject: str = "candidate", **changes: object) -> Evaluation:
    """What was measured beside answers."""
    facts: dict[str, object] = {
        "subject": subject, "model_digest": subject[0] * 64, "scheme": "bf16", "answers": Path("/a"), "scores": {},
        "start_seconds": 30, "answer_seconds": 20, "requests_per_minute": 1800, "latency_p50_ms": 40,
        "latency_p99_ms": 100, "peak_gib": 2,
    }  # fmt: skip
    return Evaluation.model_validate(facts | changes)


def report(*evaluations: Evaluation, **changes: object) -> EvalReport:
    """A report of one engine."""
    facts: dict[str, object] = {
        "engine": "vLLM 1", "test_digest": "t" * 64, "prompt_digest": "p" * 64, "golden": Path("/g"),
        "concurrency": 16, "hardware": "card", "flags": "f" * 64, "evaluations": evaluations,
    }  # fmt: skip
    return EvalReport.model_validate(facts | changes)


def side(
    given: Mapping[str, Answer], name: str = "candidate", measured: Evaluation | None = None, **changes: object
) -> Side:
    """A measured model; `changes` are its report's."""
    measured = measured or evaluation()
    return Side(name, report(measured, **changes), measured, given)


def reasons(decision: GateDecision) -> str:
    """Every finding, a line each."""
    return "\n".join(f"{finding.name} {finding.outcome} {finding.reason}" for finding in decision.findings)


def outcomes(decision: GateDecision) -> dict[str, str]:
    """The outcome of each finding."""
    return {finding.name: finding.outcome for finding in decision.findings}
