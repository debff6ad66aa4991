"""A small whole pack on disk, for tests that break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

PACK: dict[str, Any] = {
    "name": "shop",
    "description": "Two slices.",
    "images": {"source": "drawn here", "license": "Apache-2.0"},
    "slices": {
        "colour": {
            "prompt": "Which colour?",
            "scorer": {"name": "classes", "labels": {"red": [], "blue": []}},
            "gate": {"margin": 0.1},
        },
        "price": {"scorer": {"name": "number", "absolute": 0.01}, "gate": {"superiority": True, "minimum": 0.5}},
    },
    "limits": [{"metric": "colour/sensitivity/red", "minimum": 0.5}],
}
ITEMS: list[dict[str, Any]] = [
    {"id": "a", "slice": "colour", "images": ["images/red.png"], "expected": "red"},
    {"id": "b", "slice": "colour", "images": ["images/blue.png"], "expected": "blue"},
    {"id": "c", "slice": "price", "images": ["images/red.png", "images/blue.png"], "prompt": "Sum?", "expected": 12.5},
]


def write_pack(folder: Path, *, pack: dict[str, Any] | None = None, items: list[dict[str, Any]] | None = None) -> Path:
    """A pack with three items and two images, unless told otherwise."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(folder / "images" / f"{colour}.png")
    (folder / "pack.yaml").write_text(yaml.safe_dump(PACK if pack is None else pack, sort_keys=False))
    lines = ITEMS if items is None else items
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
