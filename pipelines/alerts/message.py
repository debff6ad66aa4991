"""One message for everything that is to be told at once, without what is secret in it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.alerts.alert import RANK, Alert, Notice
from pipelines.system.redact import redacted

LISTED = 20
"""Notices in one message, the worst and newest; the others are counted."""

LONGEST = 500
"""Characters of one summary."""


@dataclass(frozen=True)
class Message:
    """What a sink is given."""

    title: str
    """One line."""

    text: str
    notices: tuple[Notice, ...]
    """The same for programs."""


def compose(notices: Sequence[Notice], dropped: int = 0) -> Message:
    """A message of notices.

    Args:
        notices: The oldest first.
        dropped: Older ones that no longer found room.
    """
    clean = tuple(notice.model_copy(update={"alert": _clean(notice.alert)}) for notice in notices)
    kinds = Counter(notice.kind for notice in clean)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    listed = _worst(clean)
    names = ", ".join(dict.fromkeys(notice.alert.name for notice in listed[:3]))
    lines = [_line(notice) for notice in listed]
    if rest := len(clean) - LISTED + dropped if len(clean) > LISTED else dropped:
        lines.append(f"and {rest} more: see `alerts.json` in the state folder and the log")
    title = _one_line(f"vlmops on {socket.gethostname()}: {counted}: {names}")
    return Message(title=title, text="\n".join(lines), notices=clean)


def _worst(notices: Sequence[Notice]) -> list[Notice]:
    """Those that find room, worst first, and of one severity in the order of time: a chat may cut off the end."""
    newest = sorted(notices, key=lambda notice: notice.time, reverse=True)
    chosen = sorted(newest, key=lambda notice: -RANK[notice.alert.severity])[:LISTED]
    return sorted(chosen, key=lambda notice: (-RANK[notice.alert.severity], notice.time))


def shortened(text: str, size: int) -> str:
    """A text of at most so many bytes of UTF-8, whole characters only; says that it was cut."""
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    mark = " ..."
    return encoded[: size - len(mark)].decode(errors="ignore") + mark


def _clean(alert: Alert) -> Alert:
    labels = {name: _one_line(redacted(value)) for name, value in alert.labels.items()}
    summary = _one_line(redacted(alert.summary))[:LONGEST]
    return replace(alert, summary=summary, labels=labels, runbook=redacted(alert.runbook))


def _one_line(text: str) -> str:
    return " ".join(text.encode(errors="replace").decode().split())  # half characters, as in odd file names


def _line(notice: Notice) -> str:
    alert = notice.alert
    labels = ", ".join(f"{name}={value}" for name, value in sorted(alert.labels.items()))
    about = f" ({labels})" if labels else ""
    since = "" if notice.kind == "firing" else f" [since {notice.since:%Y-%m-%d %H:%M} UTC]"
    runbook = f"\n  {alert.runbook}" if alert.runbook and notice.kind != "resolved" else ""
    return f"{notice.kind.upper()} {alert.severity} {alert.name}{about}: {alert.summary}{since}{runbook}"
