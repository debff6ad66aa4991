"""The parts of the page one by one: words for figures, the choice of answers, small images, pictures that fit in."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.evaluation import Answer
from pipelines.page.changes import Change, changes, dealt
from pipelines.page.drawing import PAINT, draw
from pipelines.page.questions import asked_packs, asked_rows
from pipelines.page.thumbnails import SIDE, thumbnail
from pipelines.page.training import read_loss, smoothed
from pipelines.page.wording import breakable, listed, mark, percent, points, short, size
from pipelines.scenarios.check import open_pack
from pipelines.scenarios.opened import read_pack_items
from pipelines.settings import ROOT
from tests.pipelines.judgement.sides import side
from tests.pipelines.page.judged_run import row


def answer(item: str, text: str, **others: object) -> Answer:
    facts: dict[str, object] = {
        "item": item, "slice": item.partition("-")[0], "expected": "y", "text": text, "finish_reason": "stop",
        "seconds": 1,
    }  # fmt: skip
    return Answer.model_validate(facts | others)


def test_figures_read_like_figures() -> None:
    assert percent(0.9612) == "96.1\u202f%"
    assert (points(0.0123), points(-0.0041), points(-0.0001), points(0)) == ("+1.2", "\u22120.4", "+0.0", "+0.0")
    assert (size(2_879_216), size(31_000_000_000)) == ("2.88\u202fMB", "31.00\u202fGB")
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_a_name_breaks_at_its_joints_and_is_escaped() -> None:
    assert breakable("a/b_<c>") == "a/<wbr>b_<wbr>&lt;c&gt;"


def test_an_answer_is_right_wrong_or_partly_right() -> None:
    answers = (answer("a-1", "y"), answer("a-1", "n"), answer("a-1", "n", score=0.5), answer("a-1", "n", score=1))
    assert [mark(each) for each in answers] == ["right", "wrong", "partly", "right"]


@given(st.text(), st.integers(3, 40))
def test_a_short_text_is_short_and_keeps_its_ends(text: str, longest: int) -> None:
    cut = short(text, longest)
    assert len(cut) == min(len(text), longest)
    assert cut[0] == text[0] if text else cut == ""


def test_changes_are_what_got_better_or_worse() -> None:
    before = {
        "a-1": answer("a-1", "y"),
        "a-2": answer("a-2", "n"),
        "a-3": answer("a-3", "n"),
        "a-4": answer("a-4", "y"),
    }
    after = {"a-1": answer("a-1", "n"), "a-2": answer("a-2", "y"), "a-3": answer("a-3", "m"), "a-5": answer("a-5", "y")}
    found = changes(side(after), side(before))
    assert [change.after.item for change in found.broken] == ["a-1"]
    assert [change.after.item for change in found.fixed] == ["a-2"]
    assert (found.reworded, found.compared) == (1, 3)


def test_grades_count_and_the_largest_loss_comes_first() -> None:
    before = {item: answer(item, "y", score=0.9) for item in ("a-1", "a-2", "a-3")}
    grades = {"a-1": 0.8, "a-2": 0.1, "a-3": 1.0}
    found = changes(side({item: answer(item, "z", score=grades[item]) for item in grades}), side(before))
    assert [change.after.item for change in found.broken] == ["a-2", "a-1"]
    assert [change.after.item for change in found.fixed] == ["a-3"]


def test_a_large_slice_hides_no_small_one() -> None:
    items = [f"large-{number}" for number in range(50)] + ["small-0", "tiny-0"]
    found = [Change(answer(item, "y"), answer(item, "n")) for item in items]
    chosen = [change.after.item for change in dealt(found, 5)]
    assert chosen == ["large-0", "small-0", "tiny-0", "large-1", "large-2"]
    assert len(dealt(found, 100)) == 52


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_a_large_image_becomes_a_small_jpeg_turned_and_without_its_place(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif.get_ifd(0x8825)[1] = "N"
    Image.effect_noise((2000, 1000), 90).convert("RGB").save(tmp_path / "photo.jpg", exif=exif)
    small = thumbnail(tmp_path / "photo.jpg")
    assert small.url is not None
    assert small.url.startswith("data:image/jpeg;base64,")
    assert (small.width, small.height) == (SIDE // 2, SIDE)
    assert len(small.url) < 40_000
    assert not decoded(small.url).getexif()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_is_shown_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (20, 10)).save(path)
    small = thumbnail(path)
    assert small.url is not None
    assert decoded(small.url).size == (20, 10)
    if mode in {"LA", "RGBA"}:
        assert decoded(small.url).getpixel((0, 0)) == (255, 255, 255)


def test_an_image_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    assert thumbnail(tmp_path / "none.png").url is None


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.webp", "image.bmp", "image.tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_a_damaged_image_is_no_failure(tmp_path: Path, name: str, share: float) -> None:
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / name)
    cut(tmp_path / name, share)
    assert thumbnail(tmp_path / name).url is None


def test_an_image_too_large_to_be_decoded_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert thumbnail(tmp_path / "large.png").url is None


def test_a_damaged_row_costs_its_own_question_alone(tmp_path: Path) -> None:
    lines = [json.dumps(row("a-1", "a")), '{"id": "a-2", "mess', "\udcff", json.dumps(row("a-3", "a"))]
    (tmp_path / "test.jsonl").write_text("\n".join(lines), errors="surrogateescape")
    assert asked_rows(tmp_path, {"a-1", "a-2", "a-3"}).keys() == {"a-1", "a-3"}


def test_no_image_of_a_pack_is_decoded_to_show_its_questions(tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    shutil.copytree(ROOT / "configs" / "scenarios" / "catalog", folder)
    pack = read_pack_items(folder)
    for path in pack.contents:
        (folder / path).write_bytes(b"no image")
    pack = read_pack_items(folder)
    name = f"catalog/{pack.items[0].id}"
    assert asked_packs([str(folder)], [pack.scenario], {name}).keys() == {name}


def test_several_turns_say_who_speaks(tmp_path: Path) -> None:
    first = row("a-1", "a", "What is it?")
    more = {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}
    first["messages"] += [more, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    (tmp_path / "test.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(row("a-2", "a")) + "\n")
    found = asked_rows(tmp_path, {"a-1"})
    assert found.keys() == {"a-1"}
    assert found["a-1"].prompt == "user: What is it?\nassistant: y\nuser: Sure?"
    assert found["a-1"].images == (tmp_path / "images" / "one.png",)
    assert asked_rows(tmp_path / "gone", {"a-1"}) == {}


def test_a_packs_questions_are_found_while_it_is_what_was_asked() -> None:
    pack = open_pack(ROOT / "configs" / "scenarios" / "catalog")
    name = f"catalog/{pack.items[0].id}"
    found = asked_packs(["catalog"], [pack.scenario], {name})
    assert found.keys() == {name}
    assert found[name].prompt == pack.prompt(pack.items[0])
    assert all(path.is_file() for path in found[name].images)
    changed = pack.scenario.model_copy(update={"digest": "0" * 64})
    assert asked_packs(["catalog"], [changed], {name}) == {}
    assert asked_packs(["no-such-pack"], [pack.scenario], {name}) == {}


def test_a_picture_takes_the_pages_colours_and_keeps_its_names_to_itself(tmp_path: Path) -> None:
    def plot(figure: object, narrow: bool) -> None:
        axes = figure.subplots()  # type: ignore[attr-defined]
        axes.plot([0, 1], color=PAINT["fail"], label="<b>$x$ & y</b>")
        axes.legend()

    picture = draw(tmp_path, "one", 'a "line" & more', plot, wide_height=2, narrow_height=2)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert "var(--fail)" in picture.wide
    assert not re.search("|".join(PAINT.values()), picture.wide)
    assert "&lt;b&gt;$x$ &amp; y&lt;/b&gt;" in picture.wide
    assert 'aria-label="a &#34;line&#34; &amp; more"' in picture.wide
    names = [re.findall(r'\bid="([^"]+)"', svg) for svg in (picture.wide, picture.narrow)]
    assert not set(names[0]) & set(names[1])
    assert set(re.findall(r"url\(#([^)]+)\)", picture.wide)) <= set(names[0])


def test_drawing_twice_gives_the_same(tmp_path: Path) -> None:
    def plot(figure: object, narrow: bool) -> None:
        figure.subplots().plot([0, 1, 0])  # type: ignore[attr-defined]

    assert len({draw(tmp_path, "one", "x", plot, wide_height=2, narrow_height=2) for _ in range(2)}) == 1


def test_a_history_is_read_as_two_curves(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 1, "eval_loss": 1.5}\n')
    loss = read_loss(tmp_path / "history.jsonl")
    assert loss is not None
    assert (loss.steps, loss.evaluations) == (((1, 2.0),), ((1, 1.5),))
    assert read_loss(tmp_path / "none.jsonl") is None
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "lo')
    assert read_loss(tmp_path / "history.jsonl") is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_running_median_stays_between_the_values(values: list[float]) -> None:
    middle = smoothed(values)
    assert len(middle) == len(values)
    assert min(values) <= min(middle) <= max(middle) <= max(values)
