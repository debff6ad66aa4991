"""The log of whoever checks: a line for each notice."""

from __future__ import annotations

import logging

from pipelines.alerts.message import Message

log = logging.getLogger(__name__)

LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


def to_log(message: Message, seconds: float) -> None:  # noqa: ARG001  every sink has a deadline
    """Write the message's lines."""
    level = max((LEVELS[n.alert.severity] for n in message.notices if n.kind != "resolved"), default=logging.INFO)
    log.log(level, "%s\n%s", message.title, message.text)
