"""Requests for the load: real questions, each time with pictures that no cache has seen."""

from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import BadInput
from serving.load import prompts as prompts_module
from serving.load.prompts import AT_A_TIME, Prompt, Supply, prompts_of
from serving.questions import Question


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """One of each kind; the smallest has a single pixel."""
    made = {name: tmp_path / name for name in ("a.png", "b.jpg", "grey.png", "dot.png")}
    Image.new("RGB", (320, 200), "white").save(made["a.png"])
    Image.new("RGB", (320, 200), "navy").save(made["b.jpg"])
    Image.new("L", (64, 64), 128).save(made["grey.png"])
    Image.new("RGB", (1, 1)).save(made["dot.png"])
    return made


def shown(content: list[dict[str, Any]]) -> list[Image.Image]:
    """The pictures of a request, as an engine decodes them."""
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "grey.png", "dot.png"])
def test_no_two_requests_show_the_same_pixels(name: str, pictures: dict[str, Path]) -> None:
    supply = Supply([Prompt((pictures[name], pictures[name]), "What is it?")])
    requests = [*supply.take(40), *supply.take(10)]
    seen = [picture.convert("RGB").tobytes() for content in requests for picture in shown(content)]
    assert len(seen) == len(set(seen)) == 100


def test_only_a_few_requests_are_in_memory_at_a_time(
    pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = prompts_module._content

    def counted(wanted: tuple[Prompt, list[int]]) -> list[dict[str, Any]]:
        made.append(wanted)
        return make(wanted)

    monkeypatch.setattr(prompts_module, "_content", counted)
    taken = ahead = 0
    for _ in Supply([Prompt((pictures["dot.png"],), "What is it?")]).take(10 * AT_A_TIME):
        taken += 1
        time.sleep(0.002)  # whoever takes them is slower than those who make them
        ahead = max(ahead, len(made) - taken)
    assert taken == len(made) == 10 * AT_A_TIME
    assert 0 < ahead < AT_A_TIME


def test_pictures_keep_size_and_format_and_nearly_all_of_their_pixels(pictures: dict[str, Path]) -> None:
    [png, jpeg] = Supply([Prompt((pictures["a.png"],), ""), Prompt((pictures["b.jpg"],), "")]).take(2)
    assert [shown(content)[0].format for content in (png, jpeg)] == ["PNG", "JPEG"]
    picture = shown(png)[0]
    assert picture.size == (320, 200)
    counts = {colour: count for count, colour in picture.convert("RGB").getcolors() or ()}
    assert 0.99 < counts[255, 255, 255] / (320 * 200) < 1


def test_prompts_are_asked_in_turn_and_written_as_the_client_reads_them(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    supply = Supply([Prompt((pictures["a.png"],), "first"), Prompt((pictures["b.jpg"], pictures["a.png"]), "second")])
    supply.write(tmp_path / "requests.jsonl", 5)
    contents = [json.loads(line)["content"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [content[-1]["text"] for content in contents] == ["first", "second", "first", "second", "first"]
    assert [len(content) for content in contents] == [2, 3, 2, 3, 2]


def question(*parts: dict[str, str]) -> Question:
    """One with a single message."""
    return Question("q", "s", ({"role": "user", "content": list(parts)},), "yes", Path("data"))


def test_questions_without_a_picture_are_left_out_and_alone_refused() -> None:
    text = {"type": "text", "text": "What is it?"}
    with_picture = question({"type": "image", "image": "images/1.png"}, text)
    assert prompts_of([question(text), with_picture]) == (Prompt((Path("data/images/1.png"),), "What is it?"),)
    with pytest.raises(BadInput, match="no question shows a picture"):
        prompts_of([question(text)])
