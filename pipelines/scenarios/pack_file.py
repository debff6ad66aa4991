"""`pack.yaml` of a folder, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.errors import BadInput
from pipelines.scenarios.located import line_of
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.problem import PACK, Problem
from pipelines.strict_yaml import load_yaml


def read_pack(folder: Path) -> tuple[Pack | None, list[Problem]]:
    """The pack, or every problem with its line."""
    try:
        text = (folder / PACK).read_text(encoding="utf-8")
        return Pack.model_validate(load_yaml(text)), []
    except OSError as error:
        return None, [Problem(PACK, 1, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return None, [Problem(PACK, 1, f"not UTF-8: {error}")]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return None, [Problem(PACK, line, f"not YAML that can be taken: {error.problem}")]
    except ValidationError as error:
        return None, [_located(text, told["loc"], told["msg"]) for told in error.errors(include_url=False)]
    except RecursionError:  # of a schema
        return None, [Problem(PACK, 1, "nested too deeply to be checked")]


def require_items(folder: Path, pack: Pack) -> None:
    """Refuse a template where a pack is wanted.

    Raises:
        BadInput: It is one.
    """
    if pack.template:
        raise BadInput(
            f"{folder} is a template: no images come with it. Make a pack of it and of your own images, and name that: "
            f"vlmops scenario import {pack.name} TABLE.csv --images DIR --out DIR"
        )


def _located(text: str, location: tuple[str | int, ...], message: str) -> Problem:
    field = ".".join(str(part) for part in location) or PACK
    return Problem(PACK, line_of(text, location), f"{field}: {message}")
