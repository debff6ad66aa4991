"""YAML as people mean it: no key twice, keys are text, and whatever is wrong has a line."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.MarkedYAMLError: It is not YAML, says a key twice, has a key that is not text (`yes` and `on` are not),
            something that holds itself, or a value that its kind cannot be, such as a date that is no day.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise yaml.MarkedYAMLError(problem=f"{error.reason} at character {error.position}") from None


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        outer = self.anchors.get(event.anchor) if isinstance(event, yaml.AliasEvent) else None
        if outer is not None and outer.end_mark is None:  # not read to its end
            raise yaml.MarkedYAMLError(problem=f"{event.anchor} holds itself", problem_mark=outer.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _require_text_once(node)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # of 2026-99-99, `!!bool maybe` and `!!timestamp today`
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{node.value!r:.40} is no {kind}; quote it if it is text", problem_mark=node.start_mark
            ) from None


def _require_text_once(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
            kind = key.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"the key {shown:.40} is of kind {kind}, not text; quote it", problem_mark=key.start_mark
            )
        if key.value in seen:
            raise yaml.MarkedYAMLError(problem=f"{key.value!r:.40} is said twice", problem_mark=key.start_mark)
        seen.add(key.value)
