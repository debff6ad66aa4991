"""Limits that hold whatever the reference did: they catch a ruined model with fifty items."""

from __future__ import annotations

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate
from pipelines.judgement.side import Answers


def guards(rules: Gate, answers: Answers) -> tuple[Finding, ...]:
    """Are there too many answers without a word, or cut at the token limit?"""
    empty = sum(not answer.text.strip() for answer in answers.values())
    cut = sum(answer.finish_reason == "length" for answer in answers.values())
    return (
        _limited("empty", "answers are empty", empty, len(answers), rules.max_empty),
        _limited("cut", "answers are cut at max_new_tokens", cut, len(answers), rules.max_cut),
    )


def _limited(name: str, what: str, count: int, n: int, limit: float) -> Finding:
    reason = f"{count} of {n} {what} ({count / n:.1%}); gate.max_{name} allows {limit:.1%}"
    return Finding(name=name, outcome="pass" if count / n <= limit else "fail", reason=reason)
