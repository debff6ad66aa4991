"""Where in a YAML file a value stands, so that what is wrong with it can be found."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

Location = Sequence[str | int]
"""Keys and indices, from the outermost in; what is not in the file, such as the name of a variant, is passed over."""


def line_of(text: str, location: Location) -> int:
    """The line, from 1, of the innermost part of a location that is there.

    Args:
        text: YAML that can be read.
    """
    node = yaml.compose(text, yaml.SafeLoader)
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        key, inner = _step(node, part)
        if key is not None:
            node, line = inner, key.start_mark.line + 1
    return line


def _step(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node | None, yaml.Node | None]:
    """What names a part of a node, and the part itself."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(part)), (None, None))
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None, None
