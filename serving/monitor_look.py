"""One look at everything that is watched. A source that fails is unknown, with its reason; it never hides another."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import psutil

from pipelines.config_monitoring import Monitoring
from pipelines.errors import BadInput, EngineFailed, VlmopsError
from pipelines.monitoring.place import Place
from pipelines.monitoring.snapshot import Disk, ProbeFacts, RunFacts, ServiceFacts, Snapshot, Source
from pipelines.run import Run, runs_below
from pipelines.settings import Settings
from pipelines.steps import GATE
from serving import service
from serving.monitor_gpu import Cards, owner_of
from serving.monitor_inputs import asked_lately, compare_inputs, rates
from serving.monitor_probe import probed
from serving.monitor_scrape import engine_facts, front_facts, scrape
from serving.promotion.deploy_log import DeployLog, State, Transition
from serving.served import Served, read_confirmed, read_served, running

log = logging.getLogger(__name__)

LastBackup = Callable[[Path], datetime | None]
"""Time of the last backup of a home."""


class Look:
    """Gathers one snapshot."""

    def __init__(self, settings: Settings, limits: Monitoring, cards: Cards, last_backup: LastBackup) -> None:
        self._settings = settings
        self._limits = limits
        self._cards = cards
        self._last_backup = last_backup
        self._place = Place.of(settings)
        self._unknown: dict[Source, str] = {}
        self._queue = False

    def snapshot(self, before: Snapshot | None) -> Snapshot:
        """Everything, now.

        Args:
            before: The last one: a probe is not repeated before its time.
        """
        self._unknown, self._queue = {}, False
        found: dict[str, Any] = {}
        now = datetime.now(UTC)
        for source, look in self._sources(before, now).items():
            with self._known(source):
                found |= look()
        return Snapshot(time=now, unknown=dict(self._unknown), **found)

    def _sources(self, before: Snapshot | None, now: datetime) -> Mapping[Source, Callable[[], dict[str, Any]]]:
        return {
            "service": lambda: self._service(before, now),
            "engine": self._engine,
            "front": self._front,
            "gpu": self._gpus,
            "probe": lambda: self._probe(None if before is None else before.probe, now),
            "disk": lambda: {"disks": disks(self._settings)},
            "backup": lambda: {"backup": self._last_backup(self._settings.home)},
            "runs": lambda: {"runs": run_facts(self._settings)},
            "inputs": lambda: self._inputs(before, now),
        }

    @contextmanager
    def _known(self, source: Source) -> Iterator[None]:
        try:
            yield
        except (VlmopsError, OSError, ValueError) as error:  # a file of another version, or half of one
            self._unknown[source] = str(error)
        except (LookupError, TypeError, ArithmeticError, psutil.Error) as error:  # of ours, in this source
            self._unknown[source] = repr(error)
            log.exception("%s cannot be looked at", source)

    def _service(self, before: Snapshot | None, now: datetime) -> dict[str, Any]:
        return {"service": service_facts(self._settings, None if before is None else before.service, now)}

    def _engine(self) -> dict[str, Any]:
        if not running(self._settings):
            raise EngineFailed("no engine is running")
        facts = engine_facts(scrape("the engine", f"{self._settings.engine_url}/metrics"))
        self._queue = facts.waiting > 0
        return {"engine": facts}

    def _probe(self, last: ProbeFacts | None, now: datetime) -> dict[str, Any]:
        """Not while requests wait: a probe would push in, and answers that come too late be taken for wrong ones."""
        every = timedelta(minutes=self._limits.probe_minutes)
        return {"probe": last if self._queue else probed(self._settings, last, now, every)}

    def _front(self) -> dict[str, Any]:
        return {"front": front_facts(scrape("Caddy", f"http://127.0.0.1:{self._settings.ready_port}/metrics"))}

    def _gpus(self) -> dict[str, Any]:
        looked = self._cards.look(owner_of(set(running(self._settings))))
        if self._cards.state == "unknown":
            self._unknown["gpu"] = self._cards.why
        return {"gpu_state": self._cards.state, "cards": looked}

    def _inputs(self, before: Snapshot | None, now: datetime) -> dict[str, Any]:
        """A comparison reads the samples of a day: the last one stands until it is time for another."""
        inputs, served = self._limits.inputs, read_served(self._settings)
        if before is not None and not self._due(before, served, now):
            self._unknown |= {source: why for source, why in before.unknown.items() if source == "inputs"}
            kept = {"rates": before.rates, "inputs": before.inputs}
            return kept | {"compared": before.compared, "reference": before.reference}
        samples = asked_lately(self._place, inputs, now)
        try:
            compared = () if served is None else compare_inputs(self._place, served, inputs, samples)
        except BadInput as error:  # that lasts: it is no reason to read them all again at the next look
            self._unknown["inputs"], compared = str(error), ()
        digest = None if served is None else served.own_digest[:16]
        return {"rates": rates(samples), "inputs": compared, "compared": now, "reference": digest}

    def _due(self, before: Snapshot, served: Served | None, now: datetime) -> bool:
        every = timedelta(minutes=self._limits.inputs.compare_minutes)
        other = served is not None and served.own_digest[:16] != before.reference  # of another training set
        # A comparison to come is of a clock that was put back.
        return other or before.compared is None or not timedelta(0) <= now - before.compared < every


def service_facts(settings: Settings, before: ServiceFacts | None, now: datetime) -> ServiceFacts:
    """Who serves, from the front's switch, the processes and the deploy log."""
    lines = DeployLog(settings.serving).read()
    told = service.status(settings)
    released, confirmed = read_served(settings), read_confirmed(settings)
    serves = released if released is not None and told["version"] == released.version else None
    since = before.since if before is not None and before.state == told["state"] else None
    return ServiceFacts(
        state=told["state"],
        since=since or now,
        version=told["version"],
        digest=None if serves is None else serves.own_digest[:16],
        strategy=None if serves is None else serves.serving.strategy,
        champion=None if confirmed is None else confirmed.now.version,
        transitions=_transitions(lines),
        last={line.state: line.time for line in lines},
    )


def _transitions(lines: Sequence[Transition]) -> dict[str, int]:
    """Of every state, those that never came too: a series that begins at 1 shows no growth."""
    counts = Counter(line.state for line in lines)
    return {state: counts[state] for state in get_args(State)}


def run_facts(settings: Settings) -> RunFacts:
    """What the gate said in the runs that are there; runs of another version of vlmops count, and say nothing."""
    runs = runs_below(settings.runs)
    outcomes = [outcome for run in runs if (outcome := _outcome(run)) is not None]
    return RunFacts(runs=len(runs), decisions=dict(Counter(outcomes)), last_outcome=outcomes[-1] if outcomes else None)


def _outcome(run: Run) -> str | None:
    try:
        return run.read(GATE).outcome
    except BadInput:
        return None


def disks(settings: Settings) -> tuple[Disk, ...]:
    """The file systems of the home and of the cache."""
    places = {"home": settings.home, "cache": settings.cache}
    found = {name: shutil.disk_usage(place) for name, place in places.items() if place.is_dir()}
    return tuple(Disk(name=name, free_bytes=each.free, total_bytes=each.total) for name, each in found.items())
