"""What a sink has yet to be told, and how much it was told lately."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from pipelines.alerts.alert import RANK, Notice
from pipelines.alerts.delivery import Delivery, Job
from pipelines.alerts.message import compose
from pipelines.config_alerts import AnySink

ROOM = 200
"""Notices that wait for one sink; beyond, the oldest are dropped and counted."""

HOUR = timedelta(hours=1)


class Outbox(BaseModel):
    """Of one sink."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    waiting: tuple[Notice, ...] = ()
    dropped: int = 0
    """Of what waited, since the last message."""

    sent: tuple[datetime, ...] = ()
    """Messages of the last hour, failed ones too: a sink that refuses must not be hammered either."""

    last: Delivery | None = None
    """What became of the last message."""

    def with_notices(self, notices: Iterable[Notice], sink: AnySink) -> Outbox:
        """With those notices that are for this sink."""
        meant = (n for n in notices if RANK[n.alert.severity] >= RANK[sink.least])
        waiting = (*self.waiting, *meant)
        kept = waiting[-ROOM:]
        return self.model_copy(update={"waiting": kept, "dropped": self.dropped + len(waiting) - len(kept)})

    def due(self, sink: AnySink, now: datetime) -> Job | None:
        """The next message, or None: nothing waits, or the hour's messages are spent."""
        if not self.waiting or len(self._recent(now)) >= sink.per_hour:
            return None
        return Job(sink, compose(self.waiting, self.dropped))

    def after(self, delivery: Delivery, now: datetime) -> Outbox:
        """What is left after a message with all that waited."""
        left = (self.waiting, self.dropped) if delivery.error is not None else ((), 0)
        sent = (*self._recent(now), now)
        return Outbox(waiting=left[0], dropped=left[1], sent=sent, last=delivery)

    def _recent(self, now: datetime) -> tuple[datetime, ...]:
        return tuple(time for time in self.sent if now - time < HOUR)
