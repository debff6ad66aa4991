"""What a check found wrong, and what is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from pipelines.config_alerts import Severity
from pipelines.system.manifest import text_digest

RANK: Final[Mapping[Severity, int]] = {"info": 0, "warning": 1, "critical": 2}


@dataclass(frozen=True)
class Alert:
    """Something is wrong now."""

    name: str
    """Of the rule, as in `configs/monitoring/rules`."""

    severity: Severity
    summary: str
    """A sentence with the figures; they may differ from check to check."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """What it is about: the same name and labels are the same alert."""

    runbook: str = ""
    """Where it is said what to do."""

    @property
    def fingerprint(self) -> str:
        """The same for the same thing, whatever its figures."""
        return text_digest(self.name, *(text for pair in sorted(self.labels.items()) for text in pair))[:16]


class Notice(BaseModel):
    """One thing to tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["firing", "still firing", "resolved"]
    alert: Alert
    time: datetime
    """When that was found."""

    since: datetime
    """When it began to fire."""
