"""Every scorer by its name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.scenarios.scorers.anls import Anls
from pipelines.scenarios.scorers.classes import Classes
from pipelines.scenarios.scorers.exact import Exact
from pipelines.scenarios.scorers.hierarchy import Hierarchy
from pipelines.scenarios.scorers.json_fields import JsonFields
from pipelines.scenarios.scorers.number import Number
from pipelines.scenarios.scorers.sets import Set
from pipelines.scenarios.scorers.text import Text

AnyScorer = Annotated[
    Exact | Text | Set | Hierarchy | JsonFields | Anls | Number | Classes,
    Field(discriminator="name"),
]

REVISION = "2"
"""Raised when a scorer judges otherwise than before: answers that it scored do not compare with those of before."""
