"""Makes the pack `digits`: scans that the default split of `builtin://digits` keeps for the test.

    .venv-ml/bin/python configs/scenarios/digits/make.py FOLDER

writes `items.jsonl` and `images/` into FOLDER. The scans are those of the UCI set that scikit-learn ships.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from PIL import Image

from training.builtin.digits import write_digits

EACH = 17
"""Scans of each digit."""


def make(folder: Path) -> None:
    """Write items and images: the first test scans of each digit, of the split with seed 0."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seen: Counter[str] = Counter()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        write_digits(Path(scratch), replay=0, seed=0)
        for line in (Path(scratch) / "data.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if (row["split"], row["slice"]) != ("test", "digits"):
                continue
            digit = next(c for c in row["messages"][1]["content"][0]["text"] if c.isdigit())
            if seen[digit] < EACH:
                name = f"images/{digit}-{seen[digit]:02d}.png"
                seen[digit] += 1
                with Image.open(Path(scratch) / row["messages"][0]["content"][0]["image"]) as scan:
                    scan.convert("L").save(folder / name, optimize=True)  # the same pixels in a third of the bytes
                item = {"id": Path(name).stem, "slice": "scans", "images": [name], "expected": digit}
                lines.append(json.dumps(item) + "\n")
    (folder / "items.jsonl").write_text("".join(sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
