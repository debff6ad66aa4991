"""What serves: one version with everything needed to start it again, and the engines that are running now."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.artifacts import ModelVersion
from pipelines.config import Config, Hardware, Images, Serving
from pipelines.errors import BadInput
from pipelines.settings import Settings
from pipelines.system.durable import write_text
from serving.adapter import Files, LoraAdapter, files_of
from serving.engine import VLLM, Launch, find
from serving.golden import verify_golden

Kept = TypeVar("Kept", bound=BaseModel)


def _middlewares(*names: str) -> tuple[str, ...]:
    return tuple(part for name in names for part in ("--middleware", f"serving.{name}"))


IN_SERVICE = _middlewares("monitor_tap.Tap", "refusals.KnownFaults", "refusals.StreamsThatBegin")
"""In service the monitor samples what is asked, numbers alone, and refusals are told as such; in no evaluation."""

NAMED = _middlewares("refusals.NamedModel")
"""Beside an adapter the base answers too, and would whoever names nobody."""


class Served(BaseModel):
    """A version as it is served; kept in `serving.json` once it has been released."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    digest: str
    """Of the model's manifest."""

    model: Path
    golden: Path
    golden_digest: str | None = None
    """Of the golden questions, their images and their answers. None: registered before there was one."""

    serving: Serving
    images: Images
    hardware: Hardware
    adapter: LoraAdapter | None = None
    """What makes the version, where the model is a base that it shares with others."""

    @property
    def own_digest(self) -> str:
        """Of the manifest of what no other version has."""
        return self.digest if self.adapter is None else self.adapter.digest

    @property
    def reloadable(self) -> bool:
        """Whether its engine may be told to read another version's weights, or to take its adapter."""
        able = self.adapter is not None or self.hardware.device == "cuda"
        return able and self.serving.strategy != "restart"

    @property
    def names(self) -> tuple[str, ...]:
        """The names that its engine answers to.

        They are fixed when it starts: one that is to have other weights later must not bear the name of a version. An
        adapter takes a place of the engine for each name, so that it has one.
        """
        public = self.serving.name
        alone = self.reloadable or self.adapter is not None
        return (public,) if alone else (public, f"{public}-v{self.version}")

    @property
    def name(self) -> str:
        """The name that it is probed under: where it can be, one that only an engine of this version answers to."""
        return self.names[-1]

    def log(self, settings: Settings) -> Path:
        """The log of its engine; its name tells which version an engine serves, and is taken from it when that ends."""
        return engines(settings) / f"v{self.version}-{self.own_digest[:16]}.log"

    def verify(self) -> None:
        """Check every file that it is made of, and those that it is probed with.

        Raises:
            ManifestMismatch: One that it is made of is missing, added or changed.
            BadInput: One that it is probed with is.
        """
        Files(self.model, self.digest, self.adapter).verify()
        verify_golden(self.golden, self.golden_digest)

    def launch(self, program: tuple[str, ...] = VLLM) -> Launch:
        """How its engine is started."""
        return Launch(
            model=self.model,
            names=self.names,
            serving=self.serving,
            images=self.images,
            hardware=self.hardware,
            program=program,
            adapter=self.adapter,
            extra=IN_SERVICE if self.adapter is None else (*IN_SERVICE, *NAMED),
            reloadable=self.reloadable,
        )


class Confirmed(BaseModel):
    """The last version that passed its watch, and the one before; kept in `confirmed.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    now: Served
    before: Served | None


def served(config: Config, version: ModelVersion) -> Served:
    """A registered version as it is to be served: with the settings that it was measured with.

    One that was registered before all of these were kept takes what is missing from the config.

    Raises:
        BadInput: Its files are not on this machine's disks.
        ManifestMismatch: Its adapter was never finished.
    """
    files = files_of(version)
    return Served(
        version=version.version,
        digest=files.digest,
        model=files.model,
        adapter=files.adapter,
        golden=Path(version.golden),
        golden_digest=version.golden_digest,
        serving=Serving.model_validate_json(version.serving),
        images=config.images if version.images is None else Images.model_validate_json(version.images),
        hardware=config.hardware if version.hardware is None else Hardware.model_validate_json(version.hardware),
    )


def engines(settings: Settings) -> Path:
    """The folder of the logs of engines in service."""
    return settings.serving / "engines"


def running(settings: Settings) -> dict[int, Path]:
    """The process groups of engines in service, with their logs."""
    return find(engines(settings))


def read_served(settings: Settings) -> Served | None:
    """What was released last, or None before the first release.

    Raises:
        BadInput: Another release of vlmops wrote it.
    """
    return _read(settings.serving / "serving.json", Served)


def write_served(settings: Settings, now: Served) -> None:
    """Record what is about to be released."""
    write_text(settings.serving / "serving.json", now.model_dump_json(indent=1))


def read_confirmed(settings: Settings) -> Confirmed | None:
    """What passed its watch last, or None before the first; raises as `read_served` does."""
    return _read(_confirmed(settings), Confirmed)


def confirm(settings: Settings, now: Served) -> None:
    """Record that a version passed its watch."""
    last = read_confirmed(settings)
    if passed(settings, now):
        return
    confirmed = Confirmed(now=now, before=None if last is None else last.now)
    write_text(_confirmed(settings), confirmed.model_dump_json(indent=1))


def passed(settings: Settings, now: Served) -> bool:
    """Whether a version is the last one that passed its watch, with the settings that it has now."""
    last = read_confirmed(settings)
    return last is not None and last.now == now


def restored(settings: Settings, now: Served, failed: Served) -> None:
    """Record that a version is back because another one failed, which is no way back from it any more."""
    last = read_confirmed(settings)
    if last is None or last.now == now:
        return
    others = (version for version in (last.now, last.before) if version not in (None, now, failed))
    confirmed = Confirmed(now=now, before=next(others, None))
    write_text(_confirmed(settings), confirmed.model_dump_json(indent=1))


def resident(settings: Settings) -> Served | None:
    """The released version whose engine is the only one that runs, or None."""
    logs = list(running(settings).values())
    return next((version for version in reversed(known(settings)) if [version.log(settings)] == logs), None)


def serves_released(settings: Settings) -> bool:
    """Whether all that runs is the engine of what was released last."""
    released = read_served(settings)
    return released is not None and list(running(settings).values()) == [released.log(settings)]


def way_back(settings: Settings, target: Served) -> Served | None:
    """What comes back should the target fail: what was confirmed, else what was released last; never itself."""
    return next((version for version in known(settings) if version != target), None)


def known(settings: Settings) -> list[Served]:
    """What was confirmed last, what was before it, and what was released last: the first one again in quiet times."""
    confirmed = read_confirmed(settings)
    passed = () if confirmed is None else (confirmed.now, confirmed.before)
    return [version for version in (*passed, read_served(settings)) if version is not None]


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_text())
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise BadInput(
            f"{path} says nothing to this release of vlmops ({told}); go back to the release that wrote it, or move it "
            f"away and promote the version that should serve"
        ) from None


def _confirmed(settings: Settings) -> Path:
    return settings.serving / "confirmed.json"
