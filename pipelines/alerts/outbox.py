"""What a sink has yet to be told, and how much it was told lately."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from pipelines.alerts.alert import RANK, Notice
from pipelines.alerts.delivery import Delivery, Job
from pipelines.alerts.message import compose
from pipelines.config_alerts import AnySink, HeartbeatSink

ROOM = 200
"""Notices that wait for one sink; beyond, the oldest are dropped and counted."""

HOUR = timedelta(hours=1)

AGAIN = timedelta(minutes=2)
"""After a message that was not taken: a sink that refuses must not be hammered, and one that is back not wait long."""


class Outbox(BaseModel):
    """Of one sink."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    waiting: tuple[Notice, ...] = ()
    dropped: int = 0
    """Of what waited, since the last message."""

    sent: tuple[datetime, ...] = ()
    """Messages of the last hour that were taken."""

    last: Delivery | None = None
    """What became of the last message."""

    def with_notices(self, notices: Iterable[Notice], sink: AnySink) -> Outbox:
        """With those notices that are for this sink."""
        if isinstance(sink, HeartbeatSink):
            return self
        meant = (n for n in notices if RANK[n.alert.severity] >= RANK[sink.least])
        waiting = (*self.waiting, *meant)
        kept = waiting[-ROOM:]
        return self.model_copy(update={"waiting": kept, "dropped": self.dropped + len(waiting) - len(kept)})

    def due(self, sink: AnySink, now: datetime) -> Job | None:
        """The next message, or None: nothing waits, the hour's messages are spent, or the last one failed just now."""
        if self._failed_lately(now):
            return None
        if isinstance(sink, HeartbeatSink):
            return Job(sink, compose(()))
        if not self.waiting or len(self._recent(now)) >= sink.per_hour:
            return None
        return Job(sink, compose(self.waiting, self.dropped))

    def after(self, delivery: Delivery, now: datetime) -> Outbox:
        """What is left after a message with all that waited."""
        last, recent = delivery.model_copy(update={"time": now}), self._recent(now)
        if delivery.error is not None:
            return self.model_copy(update={"sent": recent, "last": last})
        return Outbox(sent=(*recent, now) if delivery.notices else (), last=last)

    def _failed_lately(self, now: datetime) -> bool:
        return self.last is not None and self.last.error is not None and _within(AGAIN, self.last.time, now)

    def _recent(self, now: datetime) -> tuple[datetime, ...]:
        return tuple(time for time in self.sent if _within(HOUR, time, now))


def _within(span: timedelta, moment: datetime, now: datetime) -> bool:
    """Whether a moment is that short a time ago; one to come is of a clock that was put back."""
    return timedelta(0) <= now - moment < span
