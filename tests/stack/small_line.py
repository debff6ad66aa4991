"""The smallest data set and config with which every step of a retrain has something to do."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from PIL import Image

from pipelines.settings import ROOT

COLOURS = {"red": (210, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40)}
STEPS = 60
EVERY = 5
"""Steps between two checkpoints."""


def write_squares(folder: Path, rows: int = 120) -> Path:
    """A chat data set of coloured squares, no two alike."""
    (folder / "images").mkdir(parents=True)
    with (folder / "data.jsonl").open("w") as file:
        for number in range(rows):
            colour = list(COLOURS)[number % len(COLOURS)]
            shade = tuple(max(0, value - number // len(COLOURS)) for value in COLOURS[colour])
            Image.new("RGB", (64, 64), shade).save(folder / "images" / f"{number}.png")
            asked = [
                {"type": "image", "image": f"images/{number}.png"},
                {"type": "text", "text": "Which colour is this?"},
            ]
            told = [{"type": "text", "text": f"The colour is {colour}."}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            file.write(json.dumps({"id": str(number), "slice": "colours", "messages": messages}) + "\n")
    return folder


def write_config(path: Path, data: Path) -> Path:
    """The embedded default, shorter: the dense base, few steps, a gate that lets everything pass that is whole."""
    config = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    config["model"] = {"source": "builtin://tiny-qwen3-vl"}
    config["data"] |= {"source": data.as_uri(), "replay": 0, "test_share": 0.2, "eval_share": 0.1}
    config["train"] |= {"steps": STEPS, "eval_every": STEPS, "checkpoint_every": EVERY}
    config["export"]["keep_merged"] = False
    config["evaluate"] |= {"golden_items": 2}
    config["gate"] = {"requirements": [{"slice": "colours", "margin": 0.99}]}
    path.write_text(yaml.safe_dump(config))
    return path
