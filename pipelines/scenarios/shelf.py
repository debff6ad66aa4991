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


def find_pack(name: str | Path) -> Path:
    """The folder of a pack.

    Args:
        name: A folder, or the name of a shipped pack.

    Raises:
        BadInput: There is neither.
    """
    for folder in (Path(name), SHIPPED / name):
        if (folder / PACK).is_file():
            return folder
    known = ", ".join(folder.name for folder in shipped_packs())
    raise BadInput(f"{name}: no scenario pack; name a folder with {PACK}, or a shipped one: {known}")
