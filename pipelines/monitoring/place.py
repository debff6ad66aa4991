"""Where what was seen lies: `monitoring` in the home's state. Anybody may read it; one monitor at a time writes.

`latest.json` is the last snapshot, `conditions.json` what was wrong then, `metrics.prom` the same for Prometheus (or
node_exporter's textfile collector). `history/` has every snapshot's series, `inputs/` samples of what was asked
(numbers alone), `references/` the same of training sets; `asking.json` says whether a retrain is asked for, `told` of
which request Airflow knows.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from pipelines.monitoring.conditions import Condition
from pipelines.monitoring.days import Days
from pipelines.monitoring.policy import Asking
from pipelines.monitoring.snapshot import Snapshot
from pipelines.settings import Settings
from pipelines.system.durable import write_bytes, write_text

if TYPE_CHECKING:
    import pyarrow as pa

CONDITIONS = TypeAdapter(list[Condition])


@dataclass(frozen=True)
class Place:
    """The folder of one home."""

    folder: Path

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """This machine's."""
        return cls(settings.state / "monitoring")

    @property
    def history(self) -> Days:
        """Every snapshot's series."""
        return Days(self.folder / "history")

    @property
    def inputs(self) -> Days:
        """Samples of what was asked."""
        return Days(self.folder / "inputs")

    @property
    def metrics(self) -> Path:
        """For Prometheus."""
        return self.folder / "metrics.prom"

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether we are the one that watches, as long as the block runs; a dead process holds no claim."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                self.looked()
                yield True

    def looked(self) -> None:
        """Whoever has the claim has looked: a mark that needs no room on a disk."""
        (self.folder / ".lock").touch()

    def last_look(self) -> datetime:
        """When whoever has the claim looked last, or else took it."""
        return datetime.fromtimestamp((self.folder / ".lock").stat().st_mtime, UTC)

    def latest(self) -> Snapshot | None:
        """The last snapshot. None: there is none, or one of another version of vlmops."""
        try:
            return Snapshot.model_validate_json((self.folder / "latest.json").read_bytes())
        except (OSError, ValidationError):  # a disk that cannot be read keeps nobody from looking
            return None

    def standing(self) -> list[Condition]:
        """What was wrong when it was taken."""
        try:
            return CONDITIONS.validate_json((self.folder / "conditions.json").read_text())
        except (FileNotFoundError, ValidationError):
            return []

    def asking(self) -> Asking:
        """Whether a retrain is asked for."""
        try:
            return Asking.model_validate_json((self.folder / "asking.json").read_text())
        except (FileNotFoundError, ValidationError):
            return Asking()

    def keep(self, snapshot: Snapshot, conditions: list[Condition], values: dict[str, float]) -> None:
        """Keep what was seen; the snapshot last, since its time says how new all is."""
        self.history.append({"time": snapshot.time.timestamp(), "values": values})
        write_bytes(self.folder / "conditions.json", CONDITIONS.dump_json(conditions, indent=1))
        write_text(self.folder / "latest.json", snapshot.model_dump_json(indent=1))

    def ask(self, asking: Asking) -> None:
        """Keep whether a retrain is asked for."""
        write_text(self.folder / "asking.json", asking.model_dump_json(indent=1))

    def pending(self) -> Asking | None:
        """The request that nobody was told of yet."""
        asking, told = self.asking(), self.folder / "told"
        new = asking.reason is not None and asking.asked is not None
        return asking if new and not (told.is_file() and told.read_text() == str(asking.asked)) else None

    def tell(self, asking: Asking) -> None:
        """Keep that a request was handed on: in a file of its own, since a monitor may be at the other."""
        write_text(self.folder / "told", str(asking.asked))


def history_schema() -> pa.Schema:
    """The columns of the history's Parquet files: values by series, as Prometheus writes it."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("time", pa.float64(), nullable=False),
            pa.field("values", pa.map_(pa.string(), pa.float64()), nullable=False),
        ]
    )
