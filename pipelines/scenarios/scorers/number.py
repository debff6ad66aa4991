"""A number, with a tolerance."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import cached_property
from typing import Literal

from pydantic import Field

from pipelines.scenarios.scorers.scorer import Scored, Scorer

PLAIN_NUMBER = r"(?:\d{{1,3}}(?:{between}\d{{3}})+|\d+)(?:{point}\d+)?(?:e[+-]?\d{{1,3}})?"
NEVER = r"(?!)"


class Number(Scorer):
    """1 where the number is near enough, else 0; the mark `number` says whether the answer holds one number.

    Digits may be grouped by threes, with spaces, apostrophes or the one of `,` and `.` that is not the decimal point.
    `1,5` is therefore no number where the decimal point is `.`. All are decimal numbers, so that tolerances are exact.
    """

    name: Literal["number"]
    absolute: float = Field(0.0, ge=0)
    """Near enough: as far away as this, in the unit of what is expected."""

    relative: float = Field(0.0, ge=0, lt=1)
    """Or as far away as this share of what is expected."""

    decimal_point: Literal[".", ","] = "."
    units: dict[str, float] = Field(default_factory=dict)
    """Units that may stand before or after a number, case apart, each with what one of it is in the unit of what is
    expected: {cm: 1, mm: 0.1}. A number alone is in that unit."""

    match: Literal["whole", "within"] = "whole"
    """The answer is the number and nothing else, a full stop apart; or it holds it, and no other number."""

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
        before = rf"(?:(?<!\w)(?P<before>{units})\s*|(?<![\w.,]))"
        after = rf"(?![.,]?\d)(?:\s*(?P<after>{units})(?!\w)|(?!\w))"
        return re.compile(rf"{before}(?P<number>[+-]?{number}){after}")

    def _value(self, text: str) -> Decimal | None:
        """The number in a text, in the unit of what is expected; None if there is none, or more than one."""
        folded = _folded(text)
        if self.match == "whole":
            whole = self._pattern.fullmatch(folded.removesuffix("."))
            return self._read(whole) if whole else None
        found = list(self._pattern.finditer(folded))
        return self._read(found[0]) if len(found) == 1 else None

    def _read(self, found: re.Match[str]) -> Decimal:
        point = self.decimal_point
        digits = "".join(c for c in found["number"] if c.isalnum() or c in {"+", "-", point}).replace(point, ".")
        factors = {_folded(unit): factor for unit, factor in self.units.items()}
        factor = factors.get(found["before"] or "", 1) * factors.get(found["after"] or "", 1)
        return Decimal(digits) * Decimal(str(factor))


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold().strip()
    return plain.replace("\N{MINUS SIGN}", "-").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
