"""Generated secrets, each in a file of mode 600. Never an argument, never printed except where a person asks for it."""

from __future__ import annotations

import secrets
from pathlib import Path

from pipelines.system.durable import write_text


def credential(folder: Path, name: str) -> str:
    """The secret of that name, made on first use.

    Args:
        folder: The state folder; secrets lie in `secrets/` below it.
        name: A file name.
    """
    path = folder / "secrets" / name
    if not path.is_file():
        write_credential(folder, name, secrets.token_urlsafe(24))
    return path.read_text()


def write_credential(folder: Path, name: str, secret: str) -> None:
    """Let the secret of that name be this one from now on."""
    path = folder / "secrets" / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, secret, mode=0o600)
