"""Every version of every registered model, as far as files are concerned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipelines import tracking
from pipelines.errors import BadInput
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Version:
    """A registered version."""

    model: str
    number: int
    aliases: tuple[str, ...]
    made: datetime
    reviewed: bool
    """Somebody approved or rejected it, or it was tried and does not serve."""

    files: tuple[Path, ...]
    """Places on this machine that its tags name: its run, what is served, its golden answers."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} v{self.number}"


def registered(settings: Settings) -> tuple[Version, ...]:
    """Every version there is.

    Raises:
        Unreachable: MLflow does not answer: then nobody knows what is referred to.
    """
    client = tracking.client(settings)
    with tracking.answering(settings):
        return tuple(version for name, aliases in _models(client) for version in _versions(client, name, aliases))


def _models(client: MlflowClient) -> Iterator[tuple[str, dict[str, str]]]:
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        yield from ((model.name, model.aliases) for model in page)
        if not (token := page.token):
            return


def _versions(client: MlflowClient, model: str, aliases: dict[str, str]) -> Iterator[Version]:
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{model}'", page_token=token)
        for found in page:
            number = int(found.version)
            yield Version(
                model=model,
                number=number,
                aliases=tuple(sorted(alias for alias, at in aliases.items() if int(at) == number)),
                made=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
                reviewed=bool({"review", "deploy_failed"} & found.tags.keys()),
                files=tuple(path for value in found.tags.values() if (path := local_path(value)) is not None),
            )
        if not (token := page.token):
            return


def local_path(text: str) -> Path | None:
    """The place on this machine that a text names, as a path or as a file:// address, or None."""
    if text.startswith("file:"):
        text = unquote(urlparse(text).path)
    return Path(text) if text.startswith("/") and "\n" not in text and "\0" not in text else None


def to_serve(versions: tuple[Version, ...], settings: Settings) -> tuple[Path, ...]:
    """What the versions behind aliases are served from: models, bases, golden answers, and their runs' own records.

    Args:
        versions: All.
        settings: Whose home they lie in.

    Raises:
        BadInput: Something of them is gone, or lies elsewhere: what is taken for whole must be.
    """
    aliased = [version for version in versions if version.aliases]
    for version in aliased:
        if missing := [path for path in version.files if not path.exists() or not path.is_relative_to(settings.home)]:
            raise BadInput(
                f"{', '.join(version.aliases)} is {version.name}, and {missing[0]} of it is not in {settings.home}; "
                f"take the alias off it, or leave out --models and copy models yourself"
            )
    named = {path for version in aliased for path in version.files}
    runs = {path for path in named if (path / "config.json").is_file() and path.parent == settings.runs}
    # Golden answers are named by their file, and their images lie beside it.
    folders = {path if path.is_dir() else path.parent for path in named} - runs
    records = {record for run in runs for record in (*run.glob("*.json"), *run.glob("*/output.json"))}
    inner = {path for path in folders if any(path != other and path.is_relative_to(other) for other in folders)}
    return tuple(sorted((folders - inner) | records))
