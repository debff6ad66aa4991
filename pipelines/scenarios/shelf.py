"""Where packs are: those that are shipped by their name, others by their folder."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import BadInput
from pipelines.scenarios.problem import PACK
from pipelines.settings import ROOT

SHIPPED = ROOT / "configs" / "scenarios"


def shipped_packs() -> tuple[Path, ...]:
    """The folders of the shipped packs and templates."""
    return tuple(sorted(file.parent for file in SHIPPED.glob(f"*/{PACK}")))


def find_pack(name: str) -> Path:
    """The folder of a pack that a config names: the same wherever a process runs.

    Args:
        name: Of a shipped pack, or the whole path of a folder.

    Raises:
        BadInput: There is neither.
    """
    folder = SHIPPED / name  # a whole path takes the place of what it is joined to
    if not (folder / PACK).is_file():
        known = ", ".join(each.name for each in shipped_packs())
        raise BadInput(f"{name}: no scenario pack; name a folder with {PACK}, or a shipped one: {known}")
    return folder
