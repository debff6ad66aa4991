"""How many items a slice should have for its margin."""

from __future__ import annotations

import math

from pipelines.grades import Grades, items_to_decide
from pipelines.scenarios.pack import Slice
from pipelines.statistics import planned_items

CHANGED = 0.05
"""Share of the answers that are taken to change, half of them for the better: as retraining and INT8 usually do."""


def wanted_items(each: Slice) -> int | None:
    """Items with which the gate finds, in four of five cases, that a candidate as good as the reference loses no more
    than the margin, if one answer in twenty changes and each image is shown once.

    Answers that can be right in part need more, as the gate's bound on grades allows for more; they are taken to change
    from wholly right to wholly wrong or back.

    Returns:
        None where a gain is required, or no loss at all: that depends on the gain.
    """
    if not each.gate.margin:
        return None
    if each.scorer.graded:
        changes = [Grades(1, 1), Grades(-1, 1), *[Grades(0, 1)] * round(2 / CHANGED - 2)]
        return items_to_decide(changes, -each.gate.margin)
    return math.ceil(planned_items(CHANGED / 2, CHANGED / 2, -each.gate.margin))
