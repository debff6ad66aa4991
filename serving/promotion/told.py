"""What the registry is told of a promotion while it is under way, which must neither stop it nor take long."""

from __future__ import annotations

import logging
from typing import Protocol

from pipelines.errors import Unreachable

log = logging.getLogger(__name__)


class Aliases(Protocol):
    """What a promotion needs of the registry."""

    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""

    def serves(self, version: int | None) -> None:
        """A version answers requests from now on, or none does."""

    def confirm(self, version: int) -> None:
        """A version has proven that it serves."""

    def mark_failed(self, version: int, reason: str) -> None:
        """A version could not serve."""

    def record(self, version: int, facts: dict[str, str]) -> None:
        """What is to be read on a version's page."""


def name_serving(registry: Aliases, version: int | None) -> None:
    """Let the registry say what answers requests."""
    try:
        registry.serves(version)
    except Unreachable as error:
        log.warning("the alias `serving` does not say yet that %s serves: %s", version, error)


def record(registry: Aliases, version: int, facts: dict[str, str]) -> None:
    """Let a version's page say where it is."""
    try:
        registry.record(version, facts)
    except Unreachable as error:
        log.warning("v%d is %s, which its page does not say: %s", version, facts["deploy_state"], error)
