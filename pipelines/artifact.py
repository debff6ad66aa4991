"""What every step's result is: frozen, closed, and written as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Artifact(BaseModel):
    """A step's result."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def proceed(self) -> bool:
        """Whether the pipeline may go on past this artifact."""
        return True
