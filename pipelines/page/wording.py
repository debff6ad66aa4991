"""How figures and verdicts read on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from pipelines.artifacts import Finding, GateDecision
from pipelines.evaluation import Answer

HEADLINES = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive"}
MINUS = "\N{MINUS SIGN}"
LONGEST_TEXT = 4_000
"""Characters of an answer that are shown; a model that never stops must not make the page unreadable."""


def percent(share: float) -> str:
    """A share of 1 as `96.1 %`."""
    return f"{share * 100:.1f}\N{NARROW NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of shares in points, `+1.2` or `\N{MINUS SIGN}0.4`."""
    return signed(difference * 100, ".1f")


def signed(value: float, form: str) -> str:
    """A number that always has its sign; zero has plus."""
    text = format(abs(value), form)
    negative = value < 0 and float(text) != 0
    return f"{MINUS if negative else '+'}{text}"


def size(count: int) -> str:
    """Bytes on disk in the unit that suits them."""
    return (
        f"{count / 1e9:.2f}\N{NARROW NO-BREAK SPACE}GB"
        if count >= 1e8
        else f"{count / 1e6:.2f}\N{NARROW NO-BREAK SPACE}MB"
    )


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def short(text: str, longest: int) -> str:
    """A text cut in its middle where it is too long for its place: both ends of a name tell something."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) // 2
    return f"{text[: longest - 1 - tail]}…{text[-tail:]}"


def breakable(name: str) -> Markup:
    """A name that may be broken behind its slashes and underscores, and not within a word."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))  # noqa: S704  escaped before


def mark(answer: Answer) -> str:
    """Whether an answer is right, wrong, or partly right: one of these words."""
    if 0 < answer.grade < 1:
        return "partly"
    return "right" if answer.correct else "wrong"


def why(decision: GateDecision) -> str:
    """The decision in one sentence."""
    failed = [finding for finding in decision.findings if finding.outcome == "fail"]
    if decision.outcome == "pass":
        return (
            f"It may replace {decision.reference}: surely no more is lost on any slice than the config tolerates, and "
            f"every limit holds."
        )
    if any(finding.name == "evaluation" for finding in failed):
        return f"It cannot be compared with {decision.reference}: {failed[0].reason}."
    if decision.outcome == "fail":
        names = listed([finding.name for finding in failed]) if failed else "everything"
        return f"It may not replace {decision.reference}: {names} fell short of what the config asks for."
    return _undecided(decision)


def _undecided(decision: GateDecision) -> str:
    open_ones = [finding for finding in decision.findings if finding.outcome == "inconclusive"]
    names = listed([finding.name for finding in open_ones])
    needed = [finding.items_needed for finding in open_ones if finding.items_needed is not None]
    way_out = f"; about {max(needed):,} would".replace(",", "\N{NARROW NO-BREAK SPACE}") if needed else ""
    return f"It may not replace {decision.reference} yet: the items do not decide {names}{way_out}."


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Failed findings, then undecided ones, then those that passed; otherwise as they came."""
    order = ("fail", "inconclusive", "pass")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.outcome)))
