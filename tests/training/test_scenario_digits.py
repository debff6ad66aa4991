"""The pack `digits` shows scans that the default split does not train on, as its script makes them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from pathlib import Path

from PIL import Image, ImageChops

from pipelines.scenarios.pictures import pixel_digest
from pipelines.scenarios.shelf import SHIPPED
from training.builtin.digits import write_digits
from training.chat.pictures import store_picture
from training.chat.references import ImageFile

DIGITS = SHIPPED / "digits"


def test_the_scans_are_those_that_make_py_takes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_digits", DIGITS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.make(tmp_path)
    assert (tmp_path / "items.jsonl").read_text() == (DIGITS / "items.jsonl").read_text()
    scans = sorted((tmp_path / "images").iterdir())
    assert len(scans) == 170
    for scan in scans:
        with Image.open(scan) as one, Image.open(DIGITS / "images" / scan.name) as other:
            assert ImageChops.difference(one, other).getbbox() is None, scan.name


def test_none_of_them_is_trained_on_with_the_default_seed(tmp_path: Path) -> None:
    write_digits(tmp_path, replay=0, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    seen: dict[str, set[str]] = {"train": set(), "eval": set(), "test": set()}
    for row in rows:
        with Image.open(tmp_path / row["messages"][0]["content"][0]["image"]) as image:
            seen[row["split"]].add(pixel_digest(image))
    shown = set()
    for scan in (DIGITS / "images").iterdir():
        with Image.open(scan) as image:
            shown.add(pixel_digest(image))
    assert len(shown) == 170
    assert shown <= seen["test"]
    assert not shown & seen["train"]


def test_a_prepared_image_is_named_by_the_digits_that_a_leak_is_found_by(tmp_path: Path) -> None:
    file = io.BytesIO()
    image = Image.linear_gradient("L").convert("RGB")
    image.save(file, "PNG")
    picture = store_picture(ImageFile(file.getvalue(), "x"), tmp_path)
    assert picture.name.split("-")[0] == pixel_digest(image)[:16]
    assert picture.name.split("-")[1].startswith(hashlib.sha256(file.getvalue()).hexdigest()[:8])
