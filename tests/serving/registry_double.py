"""A registry in a file, so that a promoter in another process changes the same one."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.errors import Unreachable


class RecordingRegistry:
    """Aliases, and which versions failed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reachable = True

    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""
        return self._read()["aliases"]

    def serves(self, version: int | None) -> None:
        """A version answers requests from now on, or none does."""
        content = self._read()
        content["serving"] = version
        content.setdefault("served", []).append(version)
        self._path.write_text(json.dumps(content))

    def confirm(self, version: int) -> None:
        """A version has proven that it serves."""
        content = self._read()
        content["serving"] = version
        champion = content["aliases"].get("champion")
        if champion != version:
            moved = {"champion": version} if champion is None else {"champion": version, "previous": champion}
            content["aliases"].update(moved)
        self._path.write_text(json.dumps(content))

    def mark_failed(self, version: int, reason: str) -> None:
        """A version could not serve."""
        content = self._read()
        content["failed"][str(version)] = reason
        self._path.write_text(json.dumps(content))

    def record(self, version: int, facts: dict[str, str]) -> None:
        """What a promotion says about a version."""
        content = self._read()
        content.setdefault("facts", {}).setdefault(str(version), {}).update(facts)
        self._path.write_text(json.dumps(content))

    def approve(self, version: int, *, reviewer: str, reason: str) -> None:
        """A word that a version should serve."""
        content = self._read()
        content["aliases"]["approved"] = version
        self._path.write_text(json.dumps(content))

    def facts(self, version: int) -> dict[str, str]:
        """What promotions said about a version."""
        return self._read().get("facts", {}).get(str(version), {})

    @property
    def champion(self) -> int | None:
        """What the alias says that serves."""
        return self.aliases().get("champion")

    @property
    def serving(self) -> int | None:
        """What the alias says that answers requests."""
        return self._read().get("serving")

    @property
    def served(self) -> list[int | None]:
        """All that answered requests, one after the other."""
        return self._read().get("served", [])

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by version."""
        return self._read()["failed"]

    def _read(self) -> dict[str, dict]:
        if not self.reachable:
            raise Unreachable("MLflow", "http://127.0.0.1:1", "refused")
        return json.loads(self._path.read_text()) if self._path.exists() else {"aliases": {}, "failed": {}}
