"""One row as it stands in a source, not yet checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from training.chat.messages import Split
from training.chat.rejects import Origin, Unusable

Style = Literal["messages", "sharegpt"]

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "validation": "eval",
    "valid": "eval",
    "val": "eval",
    "dev": "eval",
    "test": "test",
}
"""What others call the splits."""


@dataclass(frozen=True)
class Record:
    """A row and its place."""

    origin: Origin
    content: Any
    """Bytes: a line of JSON. Anything else: what should be the fields."""

    split: Split | None = None
    """That its file or folder is named for."""

    def fields(self) -> dict[str, Any]:
        """The fields.

        Raises:
            Unusable: It is no JSON object.
        """
        fields = self.content
        if isinstance(fields, bytes):
            try:
                fields = json.loads(fields)
            except (ValueError, RecursionError) as error:
                raise Unusable("not JSON", str(error)) from None
        if not isinstance(fields, dict):
            raise Unusable("wrong fields", f"a row is an object with fields, and this is a {type(fields).__name__}")
        return fields


def named_split(name: str) -> Split | None:
    """The split that a file or folder is named for: `train-00000-of-00002.parquet` is of the training split."""
    return SPLIT_NAMES.get(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])
