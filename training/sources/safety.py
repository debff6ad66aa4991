"""What a model's folder must not hold: pickles, code, requests to run code, ways out of it. Checked before any use."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import SourceRefused

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
"""Endings of files that can hold pickled objects, and so any code."""

CODE = {".py", ".so", ".pyc"}


def refuse_unsafe(path: Path) -> None:
    """Check a whole model folder.

    Raises:
        SourceRefused: Names the file and the way out.
    """
    if not path.is_dir():
        raise SourceRefused(f"{path}: no such folder; model.source names one with a published checkpoint")
    refuse_code(path)
    names = {file.name for file in path.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceRefused(f"{path}: no *.safetensors in it; convert the weights, or download the model again")
    refuse_incomplete(path, names)


def refuse_code(path: Path) -> None:
    """Check that nothing in a folder can run code or lead out of it; weights may still be missing.

    Raises:
        SourceRefused: Names the file and the way out.
    """
    for file in _files(path):
        ending = file.suffix.lower()
        if ending in PICKLES:
            raise SourceRefused(f"{file}: pickled files can run code; keep the *.safetensors only and delete this one")
        if ending in CODE:
            raise SourceRefused(f"{file}: a model brings no code of its own here; delete it if the model works without")
        if ending == ".json":
            _refuse_remote_code(file)


def refuse_incomplete(path: Path, names: Collection[str]) -> None:
    """Check the model's config, and that every shard of the index is there.

    Args:
        path: A folder with all but, perhaps, the weights.
        names: The files of the whole model.

    Raises:
        SourceRefused: Names the file and the way out.
    """
    architecture(path)
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    for name in sorted(set(_json(index).get("weight_map", {}).values())):
        if not re.fullmatch(r"[\w.-]+\.safetensors", str(name)):
            raise SourceRefused(f"{index}: shard name {name!r} leaves the folder; download the model again")
        if name not in names:
            raise SourceRefused(f"{path / str(name)}: named in the index and not there; download the model again")


def model_config(path: Path) -> dict[str, Any]:
    """The config.json of a model's folder.

    Raises:
        SourceRefused: It is not there or not an object.
    """
    file = path / "config.json"
    if not file.is_file():
        raise SourceRefused(f"{file}: not there; a published checkpoint has one, download the model again")
    return _json(file)


def architecture(path: Path) -> str:
    """The class that a model's config.json names.

    Raises:
        SourceRefused: It names none.
    """
    architectures = model_config(path).get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise SourceRefused(f"{path / 'config.json'}: names no `architectures`; download the model again")
    return str(architectures[0])


def _files(path: Path) -> Iterator[Path]:
    for entry in sorted(path.rglob("*")):
        if entry.is_symlink():
            raise SourceRefused(f"{entry}: symlinks may lead anywhere; copy the file itself, as with `cp -rL`")
        if entry.is_file():
            yield entry


def _refuse_remote_code(file: Path) -> None:
    if '"auto_map"' in file.read_text(encoding="utf-8", errors="replace"):
        raise SourceRefused(
            f"{file}: `auto_map` asks to run code from the model's folder; use a model that transformers has itself, "
            f"or remove the entry"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceRefused(f"{file}: not JSON ({error}); download the model again") from None
    if not isinstance(content, dict):
        raise SourceRefused(f"{file}: holds {type(content).__name__}, not an object; download the model again")
    return content
