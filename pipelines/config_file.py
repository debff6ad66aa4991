"""Reading a config. Precedence: default < file < `--set section.field=value`; every problem is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.config import Config
from pipelines.errors import BadInput, ConfigError
from pipelines.settings import ROOT
from pipelines.strict_yaml import load_yaml


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a config; `hardware: NAME` stands for `configs/hardware/NAME.yaml`.

    Args:
        path: A YAML file.
        overrides: `section.field=value` each, the value read as YAML.

    Raises:
        ConfigError: The file is missing or wrong; lists every problem with its field, value and what is allowed.
    """
    raw = _read_mapping(path)
    for override in overrides:
        _override(raw, override)
    if isinstance(raw.get("hardware"), str):
        raw["hardware"] = _read_profile(path, raw["hardware"])
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_problems(path, error)) from None
    _require_packs(path, config.evaluate.scenarios)
    return config


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; the shipped ones are in {ROOT / 'configs'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is {type(raw).__name__}")
    return raw


def _read_profile(path: Path, name: str) -> dict[str, Any]:
    for folder in (path.parent / "hardware", ROOT / "configs" / "hardware"):
        if (profile := folder / f"{name}.yaml").is_file():
            return _read_mapping(profile)
    known = sorted(p.stem for p in (ROOT / "configs" / "hardware").glob("*.yaml"))
    raise ConfigError(f"{path}: hardware = {name!r}: no such profile; known: {', '.join(known)}")


def _require_packs(path: Path, scenarios: Sequence[str]) -> None:
    """What is wrong with a pack is found before anything is trained, its images apart: the evaluation reads them."""
    if not scenarios:
        return
    from pipelines.scenarios.check import require_right  # with scorers that most configs do not need
    from pipelines.scenarios.shelf import find_pack

    try:
        names = [require_right(find_pack(scenario)).name for scenario in scenarios]
    except BadInput as error:
        raise ConfigError(f"{path}: evaluate.scenarios: {error}") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"{path}: evaluate.scenarios: two packs are called {twice[0]}; rename one in its pack.yaml, or leave it out"
        )


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, field = key.strip().split(".")
    if not separator or not field:
        raise ConfigError(f"--set {override}: write section.field=value, such as lora.rank=32")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
    raw[field] = yaml.safe_load(value)


def _problems(path: Path, error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "config"
        seen = "" if problem["type"] == "missing" else f" = {problem['input']!r}"
        lines.append(f"  {field}{seen if len(seen) < 80 else ''}: {problem['msg']}")
    return f"{path}: {len(lines)} problem(s)\n" + "\n".join(lines)
