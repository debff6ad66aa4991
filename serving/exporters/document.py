"""A manifest as text: YAML in the order it was written, without anchors."""

from __future__ import annotations

from typing import Any

import yaml

Document = dict[str, Any]


class _Plain(yaml.SafeDumper):
    """Writes everything where it stands, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  the base class asks for each
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text)


def to_yaml(document: Document, comment: str = "") -> str:
    """A document as YAML, after a comment of one line."""
    head = f"# {comment}\n" if comment else ""
    return head + yaml.dump(document, Dumper=_Plain, sort_keys=False, width=10_000, allow_unicode=True)
