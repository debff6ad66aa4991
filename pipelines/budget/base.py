"""The base model as far as memory goes: its shape and its parameters, from the disk or from a published shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.budget.parameters import Parameters, count_by_shape, count_in_files
from pipelines.budget.shape import ModelShape, read_shape
from pipelines.errors import BadInput
from pipelines.model_source import parse_source
from pipelines.settings import ROOT, Settings

SHAPES = ROOT / "configs" / "shapes"
"""What published config.json files say, as `organisation/name.json`, of models that may not be on this machine yet."""


@dataclass(frozen=True)
class Base:
    """A base model to be planned for."""

    shape: ModelShape
    parameters: Parameters
    seen: str
    """Where the numbers come from."""


def find_base(source: str, settings: Settings) -> Base:
    """The base that `model.source` names.

    Raises:
        BadInput: It is neither on this machine nor of a shape that is known.
    """
    for folder in _folders(source, settings):
        if (folder / "config.json").is_file():
            return read_base(folder)
    file = SHAPES / f"{published_name(source)}.json"
    if not file.is_file():
        raise BadInput(
            f"{source}: not on this machine, and no shape of it in {SHAPES}; put its published config.json there as "
            f"{published_name(source)}.json, or let `vlmops run` download it first"
        )
    shape = read_shape(json.loads(file.read_text()), str(file))
    return Base(shape, count_by_shape(shape), "the published shape; no weights on this machine")


def read_base(folder: Path) -> Base:
    """A base on disk.

    Raises:
        BadInput: Its files are not those of a published checkpoint.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise BadInput(f"{file}: no model's config ({error}); download the model again") from None
    return Base(
        read_shape(config, str(file)),
        count_in_files(folder),
        f"config.json and the headers of the weights in {folder}",
    )


def published_name(source: str) -> str:
    """Organisation and name of a source, its commit left out: `Qwen/Qwen3-VL-30B-A3B-Instruct`, `builtin/NAME`."""
    named = parse_source(source)
    if named.scheme == "builtin":
        return f"builtin/{named.place}"
    return "/".join(named.place.strip("/").split("/")[-2:])


def _folders(source: str, settings: Settings) -> list[Path]:
    """Where a source may lie already: in its own folder, or in the one that `download` names for the commit."""
    named = parse_source(source)
    if named.scheme == "file":
        return [Path(named.place)]
    return sorted((settings.cache / "bases").glob(f"{named.scheme}-*@{named.revision}"))
