"""Watches what serves, and the machine under it: `python -m serving.monitor`, once or every so many seconds.

Each look is kept in the history, judged, told to whoever is to be told, shown to Prometheus, and weighed as a reason to
retrain. One monitor a home: a second one shows what the first has seen.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from pipelines.alerts.alert import Alert
from pipelines.alerts.notify import notify
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import DONE, BadInput, VlmopsError
from pipelines.monitoring.conditions import Condition, standing
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


@dataclass(frozen=True)
class Monitor:
    """What a look leads to."""

    place: Place
    config: Config
    look: Look
    latest: Latest

    def round(self) -> tuple[Snapshot, list[Condition]]:
        """One look, and all that follows from it."""
        limits = self.config.monitoring
        before = self.place.latest()
        now = self.look.snapshot(before)
        wrong = standing(before, now, limits)
        self.latest.values = ours(now, limits)
        self.place.keep(now, wrong, {value.series: value.value for value in (*self.latest.values, *others(now))})
        write_text(self.place.metrics, self.latest.text)
        self.place.ask(consider(self.place.asking(), now, limits.retrain))
        self._tidy(now.time)
        notify(self.config.alerts, self.place.folder, [_alert(condition) for condition in wrong])
        return now, wrong

    def _tidy(self, now: datetime) -> None:
        limits = self.config.monitoring
        self.place.history.close(history_schema(), now)
        self.place.history.forget(limits.history_days, now)
        self.place.inputs.close(schema(), now)
        self.place.inputs.forget(limits.inputs.days, now)


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
            return _show_seen(place, again=every is not None)
        latest = Latest()
        with Cards().opened() as cards, latest.listening(listen):
            look = Look(settings, config.monitoring, cards, last_backup)
            return _run(Monitor(place, config, look, latest), every)


def _run(monitor: Monitor, every: float | None) -> int:
    while True:
        began = time.monotonic()
        if every is None:
            _show(*monitor.round())
            return DONE
        try:
            monitor.round()
        except (VlmopsError, OSError) as error:  # a full disk, say: whoever watches goes on watching
            log.error("%s", error)
        time.sleep(max(0.0, began + every - time.monotonic()))


def _show_seen(place: Place, *, again: bool) -> int:
    if again:
        raise BadInput(f"another monitor watches for {place.folder}; end it first")
    if (seen := place.latest()) is not None:
        _show(seen, place.standing())
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
