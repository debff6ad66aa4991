"""A release that never changes, and the manifests that are kept of it.

python -m tests.serving.exporters.released      writes them anew, after a change that is meant
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pipelines.artifacts import ModelVersion
from pipelines.budget.base import SHAPES, Base
from pipelines.budget.parameters import count_by_shape
from pipelines.budget.shape import read_shape
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import ROOT
from serving.exporters.document import Document, to_yaml
from serving.exporters.place import Claim, Place, vllm_image
from serving.release import Release, describe
from serving.release_files import EXPORTERS

KEPT = Path(__file__).parent / "kept"
CLAIM = Claim.parse("models/qwen-int8")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def config(hardware: str = "l40s_48gb", *overrides: str) -> Config:
    """The 30B model on a card."""
    return load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", (f"hardware={hardware}", *overrides))


def shape() -> Base:
    """Of the 30B model, as published."""
    file = SHAPES / "Qwen" / "Qwen3-VL-30B-A3B-Instruct.json"
    found = read_shape(json.loads(file.read_text()), str(file))
    return Base(found, count_by_shape(found), "published")


def version(of: Config, folder: Path) -> ModelVersion:
    """A registered version with golden answers in a folder."""
    content = [{"type": "image", "image": "images/1.png"}, {"type": "text", "text": "Which digit is this?"}]
    golden = {"item": "1", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "answer": "7"}
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.png").write_bytes(b"an image")
    (folder / "golden.jsonl").write_text(json.dumps(golden) + "\n")
    return ModelVersion(
        name="shelf-reader",
        version=3,
        uri="file:///srv/models/qwen%20int8",
        digest="5e1f" * 16,
        serving=of.serving.model_dump_json(),
        golden=str(folder / "golden.jsonl"),
        tracking_run="0",
    )


def release(hardware: str = "l40s_48gb", *overrides: str) -> Release:
    """Version 3 of the 30B model."""
    of = config(hardware, *overrides)
    with tempfile.TemporaryDirectory() as folder:
        return describe(of, version(of, Path(folder) / "golden"), shape(), WHEN)


def manifests(of: Release) -> dict[str, Document]:
    """In every format."""
    image = "ours/ray-vllm:0.32.0"
    places = {name: Place(image=image if name == "rayservice" else vllm_image(of), claim=CLAIM) for name in EXPORTERS}
    return {name: export(of, places[name]) for name, export in EXPORTERS.items()}


def texts() -> dict[str, str]:
    """What is kept, by file name."""
    of = release()
    files = {f"{name}.yaml": to_yaml(manifest) for name, manifest in manifests(of).items()}
    return {**files, "release.json": of.model_dump_json(indent=2) + "\n"}


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for name, text in texts().items():
        (KEPT / name).write_text(text)
