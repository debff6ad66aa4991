"""A config with some values changed, past the checks that a file would meet."""

from __future__ import annotations

from pipelines.config import Config


def changed(config: Config, section: str, **values: object) -> Config:
    """The config with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
