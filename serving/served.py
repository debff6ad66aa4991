"""What serves: one version with everything needed to start it again, and the engines that are running now."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict

from pipelines.artifacts import ModelVersion
from pipelines.config import Config, Hardware, Images, Serving
from pipelines.errors import BadInput
from pipelines.settings import Settings
from pipelines.system.durable import write_text
from serving.engine import VLLM, Launch, find


class Served(BaseModel):
    """A version as it is served; kept in `serving.json` once it has been released."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    digest: str
    model: Path
    golden: Path
    serving: Serving
    images: Images
    hardware: Hardware

    @property
    def reloadable(self) -> bool:
        """Whether its engine may be told to read another version's weights."""
        return self.hardware.device == "cuda" and self.serving.strategy != "restart"

    @property
    def names(self) -> tuple[str, ...]:
        """The names that its engine answers to.

        They are fixed when it starts: one that is to have other weights later must not bear the name of a version.
        """
        public = self.serving.name
        return (public,) if self.reloadable else (public, f"{public}-v{self.version}")

    @property
    def name(self) -> str:
        """The name that it is probed under: where it can be, one that only an engine of this version answers to."""
        return self.names[-1]

    def log(self, settings: Settings) -> Path:
        """The log of its engine; its name tells which version an engine serves, and is taken from it when that ends."""
        return engines(settings) / f"v{self.version}-{self.digest[:16]}.log"

    def launch(self, program: tuple[str, ...] = VLLM) -> Launch:
        """How its engine is started."""
        return Launch(
            model=self.model,
            names=self.names,
            serving=self.serving,
            images=self.images,
            hardware=self.hardware,
            program=program,
            reloadable=self.reloadable,
        )


class Confirmed(BaseModel):
    """The last version that passed its watch, and the one before; kept in `confirmed.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    now: Served
    before: Served | None


def served(config: Config, version: ModelVersion) -> Served:
    """A registered version as it is to be served: with the settings that it was measured with.

    Raises:
        BadInput: Its files are not on this machine's disks.
    """
    address = urlparse(version.uri)
    if address.scheme != "file":
        raise BadInput(f"version {version.version} lies at {version.uri}; only file:// can be served")
    return Served(
        version=version.version,
        digest=version.digest,
        model=Path(unquote(address.path)),
        golden=Path(version.golden),
        serving=Serving.model_validate_json(version.serving),
        images=config.images,
        hardware=config.hardware,
    )


def engines(settings: Settings) -> Path:
    """The folder of the logs of engines in service."""
    return settings.serving / "engines"


def running(settings: Settings) -> dict[int, Path]:
    """The process groups of engines in service, with their logs."""
    return find(engines(settings))


def read_served(settings: Settings) -> Served | None:
    """What was released last, or None before the first release."""
    path = settings.serving / "serving.json"
    return Served.model_validate_json(path.read_text()) if path.is_file() else None


def write_served(settings: Settings, now: Served) -> None:
    """Record what is about to be released."""
    write_text(settings.serving / "serving.json", now.model_dump_json(indent=1))


def read_confirmed(settings: Settings) -> Confirmed | None:
    """What passed its watch last, or None before the first."""
    path = _confirmed(settings)
    return Confirmed.model_validate_json(path.read_text()) if path.is_file() else None


def confirm(settings: Settings, now: Served) -> None:
    """Record that a version passed its watch."""
    last = read_confirmed(settings)
    if last is not None and last.now == now:
        return
    confirmed = Confirmed(now=now, before=None if last is None else last.now)
    write_text(_confirmed(settings), confirmed.model_dump_json(indent=1))


def resident(settings: Settings) -> Served | None:
    """The released version whose engine is the only one that runs, or None."""
    logs = list(running(settings).values())
    return next((version for version in known(settings) if [version.log(settings)] == logs), None)


def way_back(settings: Settings, target: Served) -> Served | None:
    """What comes back should the target fail: what was confirmed last, else what was released last; never itself."""
    others = (version for version in known(settings) if version.log(settings) != target.log(settings))
    return next(others, None)


def known(settings: Settings) -> list[Served]:
    """What was confirmed last, and what was released last; the same one twice in quiet times."""
    confirmed, released = read_confirmed(settings), read_served(settings)
    first = [] if confirmed is None else [confirmed.now]
    return first if released is None else [*first, released]


def _confirmed(settings: Settings) -> Path:
    return settings.serving / "confirmed.json"
