"""Watches what serves, and the machine under it: `python -m serving.monitor`, once or every so many seconds.

Each look is judged, shown to Prometheus, told to whoever is to be told, kept in the history, and weighed as a reason to
retrain. One monitor a home: a second one shows what the first has seen, and tells people if that sees nothing any more.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from pipelines.alerts.alert import Alert
from pipelines.alerts.notify import Memory, notify
from pipelines.config import Config
from pipelines.config_alerts import HeartbeatSink
from pipelines.config_file import load_config
from pipelines.errors import DONE, FAILED, BadInput, VlmopsError
from pipelines.monitoring.conditions import CONDITIONS, Condition, silent, standing, unjudged
from pipelines.monitoring.place import Place, history_schema
from pipelines.monitoring.policy import consider
from pipelines.monitoring.samples import schema
from pipelines.monitoring.series import others, ours
from pipelines.monitoring.show import table_of
from pipelines.monitoring.snapshot import Snapshot
from pipelines.retention.last import last_backup
from pipelines.settings import Settings
from pipelines.system.durable import write_text
from pipelines.system.processes import end_cleanly_on_sigterm
from serving.monitor_expose import Latest
from serving.monitor_gpu import Cards
from serving.monitor_look import Look

log = logging.getLogger(__name__)

WINDOW = timedelta(minutes=5)
"""What was counted in so long is judged at each look, as by the rules of Prometheus."""


@dataclass
class Monitor:
    """What a look leads to."""

    place: Place
    config: Config
    look: Look
    latest: Latest
    looks: tuple[Snapshot, ...] = ()
    """Of the last minutes, by this process, and the last one: on a full disk the next look has it from here."""

    memory: Memory | None = None
    """What people were told, likewise. None: of one look alone."""

    unkept: list[str] = field(default_factory=list)
    """What of the last look could not be kept, and why."""

    def round(self) -> tuple[Snapshot, list[Condition]]:
        """One look, and all that follows from it. People are told first: whatever fails after that silences nobody."""
        limits = self.config.monitoring
        last = self.looks[-1] if self.looks else self.place.latest()
        earlier = self.looks or tuple(filter(None, [last]))
        now = self.look.snapshot(last)
        wrong = standing(earlier, now, limits)
        self.looks = (*(look for look in earlier if timedelta(0) <= now.time - look.time < WINDOW), now)
        self.latest.values = ours(now, limits)
        notify(
            self.config.alerts,
            self.place.folder,
            [_alert(condition) for condition in wrong],
            unknown=unjudged(now),
            memory=self.memory,
        )
        self.unkept = []
        for keep in (self._looked, self._forget, self._keep, self._expose, self._ask, self._close):
            try:
                keep(now, wrong)
            except (VlmopsError, OSError, ValueError) as error:  # a full disk, say, or a damaged file
                self.unkept.append(str(error))
                log.error("what was seen is not kept whole: %s", error)
        return now, wrong

    def _looked(self, _: Snapshot, __: list[Condition]) -> None:
        self.place.looked()

    def _forget(self, now: Snapshot, _: list[Condition]) -> None:  # first: it makes room
        limits = self.config.monitoring
        self.place.history.forget(limits.history_days, now.time)
        self.place.inputs.forget(limits.inputs.days, now.time)

    def _keep(self, now: Snapshot, wrong: list[Condition]) -> None:
        self.place.keep(now, wrong, {value.series: value.value for value in (*self.latest.values, *others(now))})

    def _expose(self, _: Snapshot, __: list[Condition]) -> None:
        write_text(self.place.metrics, self.latest.text)

    def _ask(self, now: Snapshot, _: list[Condition]) -> None:
        self.place.ask(consider(self.place.asking(), now, self.config.monitoring.retrain))

    def _close(self, now: Snapshot, _: list[Condition]) -> None:
        self.place.history.close(history_schema(), now.time)
        self.place.inputs.close(schema(), now.time)


def _alert(condition: Condition) -> Alert:
    said = f"{condition.summary}: {condition.detail}"
    return Alert(condition.name, condition.severity, said, {}, condition.runbook)


def watch(settings: Settings, config: Config, every: float | None, listen: str | None) -> int:
    """Look once, or again and again until stopped.

    Raises:
        BadInput: Another monitor goes on looking, or the address cannot be listened on.
    """
    place = Place.of(settings)
    with place.claim() as free:
        if not free:
            return _show_seen(place, config, again=every is not None)
        latest = Latest()
        with Cards().opened() as cards, latest.listening(listen):
            look = Look(settings, config.monitoring, cards, last_backup)
            memory = None if every is None else Memory()
            return _run(Monitor(place, config, look, latest, memory=memory), every)


def _run(monitor: Monitor, every: float | None) -> int:
    while True:
        began = time.monotonic()
        if every is None:
            _show(*monitor.round())
            return FAILED if monitor.unkept else DONE
        try:
            monitor.round()
        except (VlmopsError, OSError, ValueError) as error:  # whoever watches goes on watching
            log.error("%s", error)
        time.sleep(max(0.0, began + every - time.monotonic()))


def _show_seen(place: Place, config: Config, *, again: bool) -> int:
    """What another monitor has seen; that it hangs, as NVML may with a card that is lost, it cannot tell itself."""
    if again:
        raise BadInput(f"another monitor watches for {place.folder}; end it first")
    hangs = silent(place.last_look(), datetime.now(UTC))
    if (seen := place.latest()) is not None:
        _show(seen, [*place.standing(), *hangs])
    if hangs:
        # Not a sign of life: we live, and the one that watches does not.
        told = tuple(sink for sink in config.alerts.sinks if not isinstance(sink, HeartbeatSink))
        notify(
            config.alerts.model_copy(update={"sinks": told}),
            place.folder,
            [_alert(condition) for condition in hangs],
            unknown=set(CONDITIONS),
        )
        return FAILED
    return DONE


def _show(snapshot: Snapshot, wrong: Sequence[Condition]) -> None:
    Console(soft_wrap=True).print(table_of(snapshot, wrong))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.monitor", description=__doc__)
    parser.add_argument("--config", type=Path, default=Settings().config)
    parser.add_argument("--every", type=float, metavar="SECONDS")
    parser.add_argument("--listen", metavar="HOST:PORT")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_cleanly_on_sigterm()
    try:
        return watch(Settings(), load_config(args.config), args.every, args.listen)
    except VlmopsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
