"""What every sink is: something that takes a message or says why not."""

from __future__ import annotations

from typing import Protocol

from pipelines.alerts.message import Message
from pipelines.errors import VlmopsError


class SinkFailed(VlmopsError):
    """A message was not taken."""


class Send(Protocol):
    """Sends a message."""

    def __call__(self, message: Message, seconds: float) -> None:
        """Send it, and return when it was taken.

        Args:
            message: What is told.
            seconds: For each wait of the network.

        Raises:
            SinkFailed: It was not taken; says why.
        """
