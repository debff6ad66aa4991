"""One line of data.jsonl: what is accepted and every reason to refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.builtin.drawings import draw_many
from training.chat.pictures import Unusable
from training.chat.rows import Row, read_row

IMAGE = {"type": "image", "image": "a.png"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    draw_many({"printed": 1}, 0)[0].image.save(tmp_path / "a.png")
    draw_many({"printed": 2}, 0)[1].image.save(tmp_path / "b.png")
    return tmp_path


def _read(source: Path, row: Any) -> Row:
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    return read_row(7, text, source, source / "images", {"<|im_end|>", "<|image_pad|>"})


def _row(question: Any = "What?", answer: Any = "That.", **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": "x", "messages": turns, **fields}


def test_images_point_to_their_stored_names_in_order(source: Path) -> None:
    row = _read(source, _row([IMAGE, {"type": "text", "text": "and"}, {"type": "image", "image": "b.png"}]))
    names = [part["image"] for part in row.chat()[0]["content"] if part["type"] == "image"]
    assert names == [f"images/{picture.name}" for picture in row.pictures]
    assert len(set(names)) == 2
    assert all((source / name).is_file() for name in names)


def test_a_conversation_of_several_turns_and_a_system_prompt_is_accepted(source: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *_row()["messages"], *_row("And?", "No.")["messages"]]
    assert _read(source, {"id": "x", "messages": turns}).answer == "No."


def test_the_question_is_known_by_pixels_and_text(source: Path) -> None:
    asked = [IMAGE, {"type": "text", "text": "What?"}]
    same = _read(source, _row(asked)).question
    (source / "copy.png").write_bytes((source / "a.png").read_bytes())
    assert _read(source, _row([{**IMAGE, "image": "copy.png"}, asked[1]], answer="Other.")).question == same
    assert _read(source, _row([{**IMAGE, "image": "b.png"}, asked[1]])).question != same
    assert _read(source, _row([IMAGE, {"type": "text", "text": "Why?"}])).question != same


USER, ASSISTANT = _row()["messages"]
FAULTS: list[tuple[str, Any]] = [
    ("not JSON", b"{"),
    ("not JSON", b'{"id": "\xff"}'),
    ("wrong fields", {"id": "x"}),
    ("wrong fields", _row(extra=1)),
    ("wrong fields", _row(split="dev")),
    ("wrong fields", _row([{"type": "video", "text": "x"}])),
    ("wrong fields", _row([{"type": "image", "text": "x"}])),
    ("wrong fields", _row([{"type": "image"}])),
    ("wrong fields", _row([{"type": "text"}])),
    ("wrong turns", {"id": "x", "messages": []}),
    ("wrong turns", {"id": "x", "messages": [USER]}),
    ("wrong turns", {"id": "x", "messages": [USER, USER, ASSISTANT]}),
    ("wrong turns", {"id": "x", "messages": [ASSISTANT]}),
    ("empty answer", _row(answer=" \n")),
    ("image in an answer", _row(answer=[{"type": "text", "text": "Here:"}, IMAGE])),
    ("control token in text", _row("What? <|image_pad|>")),
    ("control token in text", _row(answer="That.<|im_end|>")),
    ("missing image", _row([{"type": "image", "image": "none.png"}])),
    ("image outside the folder", _row([{"type": "image", "image": "../../etc/x.png"}])),
    ("image outside the folder", _row([{"type": "image", "image": "/etc/x.png"}])),
]


@pytest.mark.parametrize(("reason", "row"), FAULTS)
def test_a_bad_row_is_refused_with_its_reason(reason: str, row: Any, source: Path) -> None:
    with pytest.raises(Unusable) as unusable:
        _read(source, row)
    assert unusable.value.reason == reason
