"""The prompts of a comparison: real ones from every slice, with images, that an engine takes and reads alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.errors import ExportRejected
from training.chat.encoding import Encoder, load_processor
from training.parity.prompts import Room, choose_prompts, copy_images, draw_prompts

ROOM = Room(tokens=1024, images=2)


def _row(item: str, topic: str, images: int, answer: str = "yes") -> dict[str, Any]:
    content = [*({"type": "image", "image": "images/x.png"} for _ in range(images)), {"type": "text", "text": "Is it?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"id": item, "slice": topic, "messages": messages}


def _data(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "images").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "images" / "x.png")
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _chosen(data: Path, encoder: Encoder, count: int = 8, room: Room = ROOM) -> list[str]:
    return [prompt.item for prompt in choose_prompts(data, encoder, count, room)]


def test_every_slice_has_its_turn_and_images_come_first(encoder: Encoder, tmp_path: Path) -> None:
    rows = [_row("a0", "a", 0), _row("a1", "a", 1), _row("a2", "a", 1), _row("a3", "a", 1), _row("b0", "b", 1)]
    data = _data(tmp_path, *rows, _row("c0", "c", 0))
    assert set(_chosen(data, encoder, 2)) == {"b0", "a1"}
    assert _chosen(data, encoder)[-2:] in (["a0", "c0"], ["c0", "a0"])


def test_what_an_engine_would_not_take_is_passed_over(encoder: Encoder, tmp_path: Path) -> None:
    data = _data(tmp_path, _row("fits", "a", 1), _row("long", "a", 1, "yes " * 200), _row("many", "a", 3))
    assert _chosen(data, encoder, room=Room(tokens=100, images=2)) == ["fits"]


def test_what_is_cut_into_other_tokens_as_a_whole_is_passed_over(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    """A token that reaches from the template's line break into the answer is there in the whole, and not in parts."""
    encoder = Encoder(load_processor(moe_base.path, 4096, 65536))
    encoder.tokenizer.add_tokens(["\nno"])
    assert _chosen(_data(tmp_path, _row("joined", "a", 1, "no"), _row("apart", "a", 1)), encoder) == ["apart"]


def test_nothing_to_compare_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    data = _data(tmp_path, _row("many", "a", 3))
    with pytest.raises(ExportRejected, match=r"none of 1 rows can be compared.*export\.parity\.prompts to 0"):
        choose_prompts(data, encoder, 8, ROOM)


def test_a_prepared_data_set_gives_prompts(data: Dataset, encoder: Encoder) -> None:
    prompts = choose_prompts(data.path, encoder, 3, ROOM)
    assert all(prompt.images and (data.path / prompt.images[0]).is_file() for prompt in prompts)
    assert len({prompt.item for prompt in prompts}) == len(prompts) > 0


def test_drawn_prompts_have_their_pictures_and_are_the_same_each_time(encoder: Encoder, tmp_path: Path) -> None:
    first, again = (draw_prompts(tmp_path / name, encoder, 4) for name in ("a", "b"))
    assert len(first) == 4
    assert [prompt.messages for prompt in first] == [prompt.messages for prompt in again]
    copy_images(first, tmp_path / "kept")
    for prompt in first:
        assert (tmp_path / "kept" / prompt.images[0]).read_bytes() == (tmp_path / "b" / prompt.images[0]).read_bytes()
