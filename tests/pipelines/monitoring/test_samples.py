"""What is kept of a request: numbers, and the right ones."""

from __future__ import annotations

import io
import time
import typing

import pytest
from PIL import Image

from pipelines.config_monitoring import Inputs
from pipelines.monitoring.samples import (
    FEATURES,
    ImageFacts,
    Sample,
    having,
    image_facts,
    read_sample,
    refused,
    schema,
    schema_valid,
    values,
)


def picture(size: tuple[int, int], grey: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("L", size, grey).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_known_by_size_shape_and_brightness(kind: str) -> None:
    facts = image_facts(picture((400, 200), 51, kind))
    assert facts is not None
    assert (facts.megapixels, facts.aspect) == (0.08, 2.0)
    assert facts.brightness == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_whatever_its_colours_are_kept_as(mode: str) -> None:
    facts = image_facts(picture((8, 8), 255, "TIFF", mode))
    assert facts is not None
    assert facts.brightness == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("content", [b"", b"no image", picture((64, 64), 0)[:20]])
def test_what_is_no_image_has_no_facts(content: bytes) -> None:
    assert image_facts(content) is None


def test_an_image_too_large_to_decode_for_this_is_known_by_its_size_alone() -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 6000)).save(file, "PNG")
    facts = image_facts(file.getvalue())
    assert facts == ImageFacts(megapixels=48.0, aspect=8000 / 6000, brightness=None)


def test_a_damaged_image_is_known_by_its_size_alone() -> None:
    facts = image_facts(picture((300, 300), 9, "JPEG")[:400])
    assert facts is None or facts.brightness is None


def test_nothing_that_is_kept_can_hold_a_text() -> None:
    kept = {**Sample.model_fields, **ImageFacts.model_fields}
    allowed = {float, int, bool, type(None), ImageFacts}
    for name, info in kept.items():
        parts = set(typing.get_args(info.annotation)) or {info.annotation}
        assert parts - {...} <= allowed, name


@pytest.mark.parametrize(("text", "says_no"), [
    ("I'm sorry, but I can't help with that.", True), ("  I\u2019m sorry, no.", True), ("抱歉。我无法回答。", True),
    ("The digit is 7.", False), ("Not sorry at all", False), ("", False),
])  # fmt: skip
def test_refusals_are_told_by_their_beginning(text: str, says_no: bool) -> None:
    assert refused(text, Inputs().refusals) is says_no


def test_an_answer_is_held_against_the_schema_that_was_asked() -> None:
    wanted = {"type": "object", "required": ["price"], "properties": {"price": {"type": "number"}}}
    assert schema_valid('{"price": 3.5}', wanted)
    assert not schema_valid('{"price": "3.5"}', wanted)
    assert not schema_valid('{"price": 3.', wanted)
    assert not schema_valid("{}", {"type": "no such type"})


def test_a_number_beyond_all_measure_says_nothing() -> None:
    assert schema_valid("1" + "0" * 400, {"type": "number", "multipleOf": 0.5}) is None


def test_a_clients_schema_costs_nobody_else_a_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda address, *_, **__: fetched.append(address))
    slow = {"not": {"properties": {"a": {"pattern": "^(a+)+$"}}}}  # 24 letters take a second, each one more twice that
    levels = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, 50)}
    endless = {"$defs": {"a0": {"type": "null"}, **levels}, "$ref": "#/$defs/a49"}
    began = time.monotonic()
    for asked in (
        slow, {"patternProperties": {"^(a+)+$": {}}}, endless, {"$ref": "#"}, {"$ref": "#/$defs/nowhere"},
        {"$ref": "http://127.0.0.1:9/latest/meta-data"}, {"$id": "http://127.0.0.1:9/", "$ref": "x"},
    ):  # fmt: skip
        assert schema_valid(f'{{"a": "{"a" * 40}!"}}', asked) is None, asked
    assert time.monotonic() - began < 30
    assert fetched == []


def test_a_schema_may_refer_to_its_own_parts() -> None:
    price = {"$defs": {"price": {"type": "number"}}, "properties": {"price": {"$ref": "#/$defs/price"}}}
    assert schema_valid('{"price": 3.5}', price)
    assert schema_valid('{"price": "3.5"}', price) is False


def test_features_are_of_every_image_and_leave_out_what_is_unknown() -> None:
    image = ImageFacts(megapixels=1, aspect=2, brightness=None)
    samples = [Sample(time=0, images=(image, image), refused=True), Sample(time=1, prompt_tokens=7)]
    found = {name: values(samples, name) for name in FEATURES}
    assert found == {
        "megapixels": [1, 1], "aspect": [2, 2], "brightness": [], "prompt_tokens": [7], "answer_tokens": [],
        "schema_valid": [], "refused": [1],
    }  # fmt: skip
    counted = {name: having(samples, name, found[name]) for name in ("megapixels", "brightness", "prompt_tokens")}
    assert counted == {"megapixels": 1, "brightness": 0, "prompt_tokens": 1}


def test_a_file_has_the_columns_of_a_sample_and_rows_of_other_versions_are_left_out() -> None:
    assert schema().names == list(Sample.model_fields)
    assert read_sample({"time": 1.0, "shoe_size": 42}) is None
