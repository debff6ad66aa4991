"""Everything that is wrong with a pack is found at once, with its line."""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from pipelines.cli import main
from pipelines.errors import BadInput
from pipelines.scenarios.check import examine, open_pack
from pipelines.scenarios.opened import read_pack_items
from pipelines.scenarios.pictures import read_pictures
from pipelines.scenarios.planning import wanted_items
from pipelines.statistics import planned_items
from tests.pipelines.scenarios.packs import ITEMS, PACK, write_pack


def problems(folder: Path) -> list[str]:
    return [str(problem) for problem in examine(folder).problems]


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The pack with one value changed."""
    pack = copy.deepcopy(PACK)
    inner: Any = pack
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = to
    return pack


def test_a_whole_pack(tmp_path: Path) -> None:
    opened = open_pack(write_pack(tmp_path / "shop"))
    assert [item.id for item in opened.items] == ["a", "b", "c"]
    assert opened.scenario.name == "shop"
    assert [(r.slice, r.margin, r.superiority, r.minimum) for r in opened.scenario.requirements] == [
        ("shop/colour", 0.1, False, 0.0),
        ("shop/price", None, True, 0.5),
    ]
    assert [(limit.metric, limit.minimum) for limit in opened.scenario.limits] == [("shop/colour/sensitivity/red", 0.5)]


@pytest.mark.parametrize(
    ("pack", "line", "why"),
    [
        (changed("slices", "colour", "scorer", "name", to="bleu"), "    scorer:", "'bleu' found"),
        (changed("slices", "colour", "scorer", "threshold", to=1), "      threshold: 1", "threshold: Extra inputs"),
        (changed("slices", "price", "gate", to={}), "    gate: {}", "say what loss is tolerated"),
        (changed("slices", "price", "gate", to={"margin": 2}), "    gate:", "less than or equal to 1"),
        (changed("more", to=1), "more: 1", "more: Extra inputs"),
        (changed("name", to="Shop!"), "name: Shop!", "name: String should match"),
        (changed("slices", "Two words", to=PACK["slices"]["price"]), "slices:", "'Two words' is no name of a slice"),
        (changed("limits", 0, "metric", to="size/x"), "name: shop", "limit size/x: it must begin with a slice"),
        (
            changed("limits", 0, "metric", to="colour/seen"),
            "- metric: colour/seen",
            "is marked with; there are colour/",
        ),
        (
            changed("limits", 0, to={"metric": "colour/abstained", "minimum": 0.9, "maximum": 0.1}),
            "- metric: colour/abstained",
            "no share is at least 0.9 and at most 0.1",
        ),
        (changed("slices", "price", "scorer", "absolute", to=float("inf")), "      absolute: .inf", "finite number"),
        (changed("slices", "size", to=PACK["slices"]["price"]), "  size:", "slice size has no item"),
    ],
)
def test_what_is_wrong_in_pack_yaml(pack: dict[str, Any], line: str, why: str, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop", pack=pack)
    [problem] = examine(folder).problems
    assert (problem.file, why in problem.text) == ("pack.yaml", True), problem
    assert (folder / "pack.yaml").read_text().splitlines()[problem.line - 1].startswith(line)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: [", "not YAML"),
        ("- 1", "pack.yaml: Input should be a valid"),
        ("", ""),
        ("name: shop\nname: other\n", "pack.yaml:2: not YAML that can be taken: 'name' is said twice"),
        ("when: 2026-99-99\n", "'2026-99-99' is no timestamp"),
        ("[" * 3000, "nested too deeply"),
        ("yes: 1\n", "the key 'yes' is of kind bool, not text"),
        ("a: &a [*a]\n", "a holds itself"),
    ],
)
def test_what_is_no_pack_yaml(text: str, why: str, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    (folder / "pack.yaml").write_text(text)
    assert any(why in problem and problem.startswith("pack.yaml:") for problem in problems(folder))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"id": "a"}, "id 'a' is that of line 1 too"),
        ({"id": "../x"}, "id: String should match"),
        ({"slice": "size"}, "slice 'size' is not in pack.yaml; there are colour, price"),
        ({"slice": "price"}, "has no prompt, and neither has slice price"),
        ({"expected": "green"}, "expected 'green' cannot be scored by classes: names no class"),
        ({"images": ["images/red.png"]}, "asks what line 1 asks of the same images"),
        ({"images": ["images/none.png"]}, "image 'images/none.png' is not there"),
        ({"images": ["images"]}, "image 'images' is no file"),
        ({"images": ["../shop/images/red.png"]}, "lies outside the pack"),
        ({"images": ["/etc/hostname"]}, "lies outside the pack"),
        ({"answer": "x"}, "answer: Extra inputs"),
        ({"expected": ...}, "expected: Field required"),
    ],
)
def test_what_is_wrong_in_items(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    second = {k: v for k, v in (ITEMS[1] | change).items() if v is not ...}
    found = problems(write_pack(tmp_path / "shop", items=[ITEMS[0], second, ITEMS[2]]))
    assert any(problem.startswith("items.jsonl:2: ") and why in problem for problem in found), found


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    with (folder / "items.jsonl").open("a") as file:
        file.write("{\n\n")
    assert [problem[:14] for problem in problems(folder)] == ["items.jsonl:4:", "items.jsonl:5:"]


def test_a_line_separator_within_a_text_ends_no_line_and_other_bytes_are_told(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    lines = [json.dumps(ITEMS[2] | {"id": f"x{n}", "prompt": prompt}, ensure_ascii=False) for n, prompt in
             enumerate(("One\u2028two", "\u00fcber"))]  # fmt: skip
    with (folder / "items.jsonl").open("ab") as file:
        file.write(f"{lines[0]}\r\n".encode() + lines[1].encode("latin-1") + b"\n")
    [problem] = problems(folder)
    assert problem.startswith("items.jsonl:5: ")


def test_an_expected_text_that_its_own_scorer_does_not_find_right_is_a_problem(tmp_path: Path) -> None:
    pack = changed("slices", "price", "scorer", to={"name": "json", "schema": {"type": "object"}})
    found = problems(write_pack(tmp_path / "shop", pack=pack))
    assert found == [
        "items.jsonl:3: c: expected '12.5' cannot be scored by json: not an object with a field that says something"
    ]


@pytest.mark.parametrize("scorer", ["exact", "text", "anls", "set"])
@pytest.mark.parametrize(("expected", "why"), [("", "without a word"), (None, "says null"), (["a", None], "says null")])
def test_an_expected_text_without_a_word_is_a_problem(scorer: str, expected: object, why: str, tmp_path: Path) -> None:
    pack = changed("slices", "price", "scorer", to={"name": scorer})
    found = problems(write_pack(tmp_path / "shop", pack=pack, items=[*ITEMS[:2], ITEMS[2] | {"expected": expected}]))
    assert [problem.startswith("items.jsonl:3: c: expected") and why in problem for problem in found] == [True]


def test_an_answer_is_not_right_without_a_word_because_one_of_several_is_empty(tmp_path: Path) -> None:
    pack = changed("slices", "price", "scorer", to={"name": "text"})
    items = [*ITEMS[:2], ITEMS[2] | {"expected": ["a", ""]}]
    assert "without a word right" in problems(write_pack(tmp_path / "shop", pack=pack, items=items))[0]


def test_every_problem_at_once(tmp_path: Path) -> None:
    items = [ITEMS[0], ITEMS[0] | {"expected": "green"}, ITEMS[2] | {"images": ["images/none.png"]}]
    found = problems(write_pack(tmp_path / "shop", items=items))
    assert len(found) == 4
    with pytest.raises(BadInput, match=r"4 problem\(s\)(.|\n)*items.jsonl:2(.|\n)*items.jsonl:3"):
        open_pack(tmp_path / "shop")


def _png(**save: Any) -> bytes:
    file = io.BytesIO()
    Image.new(save.pop("mode", "RGB"), (32, 32)).save(file, "PNG", **save)
    return file.getvalue()


def _bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _png(exif=exif)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no image", "is none of PNG, JPEG, WEBP"),
        (_png()[:-30], "is damaged"),
        (_bomb(), "pixels"),
        (_png(mode="RGBA"), "has mode RGBA"),
        (_png(mode="I;16"), "has mode I;16"),
        (_turned(), "turned by its EXIF"),
        (b"", "is none of"),
    ],
)
def test_images_that_cannot_be_shown(content: bytes, why: str, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    (folder / "images" / "blue.png").write_bytes(content)
    [problem] = problems(folder)
    assert problem.startswith("items.jsonl:2: image 'images/blue.png'")  # once, at the first item that shows it
    assert why in problem


def test_no_link_is_followed(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    (folder / "images" / "blue.png").unlink()
    (folder / "images" / "blue.png").symlink_to(folder / "images" / "red.png")
    (folder / "elsewhere").symlink_to(tmp_path)
    assert "is a link" in problems(folder)[0]
    items = [ITEMS[0] | {"images": ["elsewhere/shop/images/red.png"]}, *ITEMS[1:]]
    assert "is a link, or lies behind one" in problems(write_pack(folder, items=items))[0]


def test_items_are_read_without_a_picture_being_decoded(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    read = read_pack_items(folder)
    assert (read.digest, read.items) == (_digest(folder), open_pack(folder).items)
    (folder / "images" / "red.png").write_bytes(b"no image")
    assert read_pack_items(folder).digest != read.digest
    (folder / "images" / "red.png").unlink()
    with pytest.raises(BadInput, match=r"items.jsonl:1: image 'images/red.png' is not there"):
        read_pack_items(folder)


def test_pictures_are_read_by_several_threads_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pack(tmp_path / "shop")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together, read = threading.Barrier(2, timeout=30), Image.open

    def opened(*told: Any, **options: Any) -> Image.Image:
        together.wait()  # breaks where one thread reads one after the other
        return read(*told, **options)

    monkeypatch.setattr(Image, "open", opened)
    assert list(read_pictures(folder, ["images/red.png", "images/blue.png"])) == ["images/red.png", "images/blue.png"]


def _digest(folder: Path) -> str:
    return open_pack(folder).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"items": [*ITEMS[:2], ITEMS[2] | {"expected": 12.6}]},
        lambda: {"items": [*ITEMS[:2], ITEMS[2] | {"system": "Be brief."}]},
        lambda: {"items": [*ITEMS[:2], ITEMS[2] | {"images": ["images/blue.png", "images/red.png"]}]},
        lambda: {"pack": changed("slices", "price", "scorer", "absolute", to=0.02)},
        lambda: {"pack": changed("slices", "colour", "prompt", to="What colour?")},
        lambda: {"pack": changed("slices", "colour", "max_new_tokens", to=8)},
    ],
)
def test_the_digest_is_of_what_decides_an_answer_s_score(change: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    assert _digest(write_pack(tmp_path / "one")) != _digest(write_pack(tmp_path / "two", **change()))


def test_other_rules_do_not_make_another_test_split(tmp_path: Path) -> None:
    before = _digest(write_pack(tmp_path / "one"))
    rules = changed("slices", "colour", "gate", "margin", to=0.5) | {"description": "Other words.", "limits": []}
    assert _digest(write_pack(tmp_path / "two", pack=rules, items=ITEMS[::-1])) == before


def test_other_pixels_make_another_digest(tmp_path: Path) -> None:
    before = _digest(write_pack(tmp_path / "one"))
    Image.new("RGB", (32, 32), "green").save(tmp_path / "one" / "images" / "red.png")
    assert _digest(tmp_path / "one") != before


def test_the_command_prints_problems_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pack(tmp_path / "shop", items=[*ITEMS, ITEMS[0]])
    assert main(["scenario", "check", str(folder)]) == 2
    printed = capsys.readouterr().out
    assert "items.jsonl:4: id 'a' is that of line 1 too" in printed
    assert "2 problem(s)" in printed


def test_the_command_says_how_many_items_a_margin_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pack(tmp_path / "shop")
    assert main(["scenario", "check", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "warning: slice colour: 2 items seldom decide a margin of 0.1; 56 do" in printed
    assert "slice price" not in printed  # that depends on the gain
    assert "nothing is wrong" in printed


def test_wanted_items_are_those_of_the_power_table(tmp_path: Path) -> None:
    pack = open_pack(write_pack(tmp_path / "shop")).pack
    assert wanted_items(pack.slices["colour"]) == pytest.approx(planned_items(0.025, 0.025, -0.1), abs=1)
    assert wanted_items(pack.slices["price"]) is None


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "check", str(tmp_path / "none")]) == 2
    assert "shipped one: catalog, digits, medical" in capsys.readouterr().err


def test_a_template_with_items_is_none(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop", pack=changed("template", to=True))
    assert "a template has no items" in problems(folder)[0]
    (folder / "items.jsonl").unlink()
    assert problems(folder) == []
    with pytest.raises(BadInput, match=r"is a template: no images come with it.*vlmops scenario import shop"):
        open_pack(folder)


def test_expected_values_of_json_are_kept_as_json(tmp_path: Path) -> None:
    opened = open_pack(write_pack(tmp_path / "shop"))
    assert json.loads(opened.items[2].expected_text) == 12.5
