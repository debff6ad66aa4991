"""The models to be compared: found among a run's own exports, or exported now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.rows import Contestant, exported_as
from pipelines.config import Config
from pipelines.errors import DONE, StepFailed, VlmopsError
from pipelines.launch import run_module
from pipelines.run import Run
from pipelines.schemes import Name, scheme_of
from pipelines.settings import Settings
from pipelines.steps import EXPORT
from pipelines.system.manifest import NAME, manifest_digest, read_manifest


class NoExport(VlmopsError):
    """A scheme that the model is not exported in, and cannot be here."""


@dataclass(frozen=True)
class Model:
    """An exported model."""

    path: Path
    digest: str
    """Of its manifest."""


def exported(run: Run, name: Contestant, config: Config, settings: Settings) -> Model:
    """The run's model in a scheme; exported to RUN/exports, as `vlmops export` does, if it is not there.

    Raises:
        NoExport: Its environment is missing, or an export with other groups lies in its place.
        StepFailed: The export ended badly.
    """
    scheme, group = exported_as(name), config.export.group_size
    if (own := _of_the_line(run, scheme, group)) is not None:
        return own
    folder = run.root / "exports" / scheme
    if not (folder / NAME).is_file():
        _export(run, scheme, group, settings)
    wanted, found = scheme_of(scheme, group).group, read_manifest(folder).get("group_size")
    if wanted != found:
        raise NoExport(f"{folder} has groups of {found}, not of {wanted}; delete it, or set export.group_size")
    return Model(folder, manifest_digest(folder))


def _of_the_line(run: Run, scheme: Name, group: int) -> Model | None:
    """What the step `export` left, where that is the scheme or its merged model."""
    if not run.finished(EXPORT):
        return None
    made = run.read(EXPORT)
    if made.served_base_path is not None:
        return None  # an adapter; schemes are compared as whole models
    if made.scheme == scheme and made.group_size in {None, group}:
        return Model(made.path, made.digest)
    if scheme == "bf16" and made.merged_path is not None and made.merged_digest is not None:
        return Model(made.merged_path, made.merged_digest)
    return None


def _export(run: Run, scheme: Name, group: int, settings: Settings) -> None:
    if scheme_of(scheme).calibrated and settings.quantize_python is None:
        raise NoExport("calibrated by llm-compressor, which is not installed: `make quantize-env` once, then again")
    code = run_module(settings, "training.standalone", str(run.root), f"--scheme={scheme}", f"--group-size={group}")
    if code != DONE:
        raise StepFailed(f"export in {scheme}", code)
