"""A number, with a tolerance."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.scenarios.scorers.scorer import Scored, Scorer

PLAIN_NUMBER = r"(?:\d{{1,3}}(?:{between}\d{{3}})+|\d+)(?:{point}\d+)?(?:e[+-]?\d{{1,3}})?"
NEVER = r"(?!)"

SIGN = r"(?:[+\-±]{1,3}|(?:minus|negative)\b-?)"
HYPHENS = re.compile(r"[\u2010-\u2015](?=\S)|\N{MINUS SIGN}")
"""What is written for a minus, where it is not a dash between words: hyphens and dashes with something after them."""


class Number(Scorer):
    """1 where the number is near enough, else 0; the mark `number` says whether the answer holds one number.

    Digits may be grouped by threes, with spaces, apostrophes or the one of `,` and `.` that is not the decimal point.
    `1,5` is therefore no number where the decimal point is `.`. All are decimal numbers, so that tolerances are exact.

    A sign stands before the number or its unit, as any dash or as the word `minus` or `negative`. Two signs, `±`, and a
    hyphen with a space after it leave open what is meant: no number.
    """

    name: Literal["number"]
    absolute: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Near enough: as far away as this, in the unit of what is expected."""

    relative: float = Field(0.0, ge=0, lt=1)
    """Or as far away as this share of what is expected."""

    decimal_point: Literal[".", ","] = "."
    units: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Units that may stand before or after a number, case apart, each with what one of it is in the unit of what is
    expected: {cm: 1, mm: 0.1}. A number alone is in that unit."""

    match: Literal["whole", "within"] = "whole"
    """The answer is the number and nothing else, a full stop apart; or it holds it, and no other number."""

    @model_validator(mode="after")
    def _units_are_told_apart(self) -> Self:
        names = [_folded(unit) for unit in self.units]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"units {', '.join(map(repr, self.units))}: one is empty, or two differ in case alone")
        return self

    def score(self, answer: str, expected: str) -> Scored:
        wanted, found = self._value(expected), self._value(answer)
        if wanted is None or found is None:
            return Scored(0.0, {"number": found is not None})
        tolerance = max(Decimal(str(self.absolute)), Decimal(str(self.relative)) * abs(wanted))
        return Scored(float(abs(found - wanted) <= tolerance), {"number": True})

    def objection(self, expected: str) -> str | None:
        return None if self._value(expected) is not None else "holds no number, or several"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        grouping = r"[ ',]" if self.decimal_point == "." else r"[ '.]"
        number = PLAIN_NUMBER.format(between=grouping, point=re.escape(self.decimal_point))
        units = "|".join(re.escape(_folded(unit)) for unit in sorted(self.units, key=len, reverse=True)) or NEVER
        outer = rf"(?:(?<!\w)(?P<outer>{SIGN})(?P<gap>\s*))?"
        before = rf"(?:(?<!\w)(?P<before>{units})\s*|(?<![\w.,]))"
        inner = rf"(?P<inner>{SIGN}\s*)?"
        after = rf"(?![.,]?\d)(?:\s*(?P<after>{units})(?!\w)|(?!\w))"
        return re.compile(rf"{outer}{before}{inner}(?P<number>{number}){after}")

    def _value(self, text: str) -> Decimal | None:
        """The number in a text, in the unit of what is expected; None if there is none, or more than one."""
        folded = _folded(text)
        if self.match == "whole":
            whole = self._pattern.fullmatch(folded.removesuffix("."))
            return self._read(whole) if whole else None
        found = list(self._pattern.finditer(folded))
        return self._read(found[0]) if len(found) == 1 else None

    def _read(self, found: re.Match[str]) -> Decimal | None:
        sign = _sign(found)
        if sign is None:
            return None
        digits = "".join(c for c in found["number"] if c.isalnum() or c in {"+", "-", self.decimal_point})
        factors = {_folded(unit): factor for unit, factor in self.units.items()}
        factor = factors.get(found["before"] or "", 1) * factors.get(found["after"] or "", 1)
        return sign * Decimal(digits.replace(self.decimal_point, ".")) * Decimal(str(factor))


def _sign(found: re.Match[str]) -> Literal[1, -1] | None:
    """Of a number; None where it is unclear."""
    outer, inner = found["outer"] or "", found["inner"] or ""
    match (outer or inner).rstrip():
        case "" | "+":
            sign: Literal[1, -1] = 1
        case "-" | "minus" | "minus-" | "negative" | "negative-":
            sign = -1
        case _:
            return None
    apart = (outer == "-" and found["gap"]) or (inner.startswith("-") and inner != "-")
    return None if apart or (outer and inner) else sign


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold().strip()
    return HYPHENS.sub("-", plain).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
