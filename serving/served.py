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
    def name(self) -> str:
        """The name that only an engine of this version answers to."""
        return f"{self.serving.name}-v{self.version}"

    def log(self, settings: Settings) -> Path:
        """The log of its engine; its name tells which version an engine serves."""
        return engines(settings) / f"v{self.version}-{self.digest[:16]}.log"

    def launch(self, program: tuple[str, ...] = VLLM) -> Launch:
        """How its engine is started."""
        return Launch(
            model=self.model,
            names=(self.serving.name, self.name),
            serving=self.serving,
            images=self.images,
            hardware=self.hardware,
            program=program,
        )


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
