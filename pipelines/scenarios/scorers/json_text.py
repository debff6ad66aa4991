"""JSON as models write it: bare, or in a fenced block."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL | re.IGNORECASE)


def parse_json(text: str) -> Any:
    """The value of a text that is JSON as a whole, or one fenced block of it.

    Raises:
        ValueError: It is not JSON. NaN and infinities are not, and neither is what others could not read: nested too
            deeply, or a number that no double holds.
    """
    fenced = FENCED.fullmatch(text)
    try:
        return json.loads(
            fenced[1] if fenced else text, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:20]} is beyond every double")
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
