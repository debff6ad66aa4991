"""One row: what is accepted, in either style, and every reason to refuse it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.builtin.drawings import draw_many
from training.chat.messages import Message
from training.chat.rejects import Origin, Unusable
from training.chat.rows import Row, read_row
from training.formats.record import Record

IMAGE = {"type": "image", "image": "a.png"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    draw_many({"printed": 1}, 0)[0].image.save(tmp_path / "a.png")
    draw_many({"printed": 2}, 0)[1].image.save(tmp_path / "b.png")
    return tmp_path


def _read(source: Path, row: Any) -> Row:
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    record = Record(Origin("data.jsonl", 7), text)
    return read_row(record, source, source / "images", {"<|im_end|>", "<|image_pad|>"})


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


def test_every_turn_of_a_conversation_counts_as_asked(source: Path) -> None:
    first = [IMAGE, {"type": "text", "text": "What?"}]
    once = _read(source, _row(first))
    turns = [*_row(first)["messages"], *_row("And?", "No.")["messages"]]
    both = _read(source, {"id": "y", "messages": turns})
    assert both.asked == (once.question, both.question)
    assert both.answers == ("That.", "No.")


def test_openai_image_urls_and_data_uris_are_images(source: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode((source / "a.png").read_bytes()).decode()
    sent = _read(source, _row([{"type": "image_url", "image_url": {"url": uri, "detail": "high"}}]))
    assert sent.pictures == _read(source, _row([IMAGE])).pictures
    assert uri not in repr(sent)  # a row of megabytes is not kept in memory


def test_the_styles_are_told_apart_row_by_row(source: Path) -> None:
    shared = {"conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "That."}]}
    row = _read(source, {"id": "x", "images": ["a.png"], **shared})
    same = _read(source, _row([IMAGE, {"type": "text", "text": "What?"}]))
    assert (row.style, same.style) == ("sharegpt", "messages")
    assert (row.messages, row.pictures, row.question) == (same.messages, same.pictures, same.question)


def test_a_row_without_a_name_is_named_by_its_place(source: Path) -> None:
    assert _read(source, {"messages": _row()["messages"]}).id == "data.jsonl:7"


@given(text=st.text(min_size=1).filter(str.strip))
def test_a_stored_row_is_one_line_to_every_reader(text: str) -> None:
    turns = (Message(role="user", content=text), Message(role="assistant", content=text))
    stored = Row(Origin("data.jsonl", 1), text, "all", None, turns, (), "messages").json()
    assert len(stored.splitlines()) == 1
    assert json.loads(stored)["messages"][1]["content"][0]["text"] == text


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
    ("image by URL", _row([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])),
    ("not JSON", b"[" * 100_000),
    ("wrong fields", b'["a row"]'),
    ("wrong fields", _row("\ud800")),
    ("image count", _row("<image>What?")),
]


@pytest.mark.parametrize(("reason", "row"), FAULTS)
def test_a_bad_row_is_refused_with_its_reason(reason: str, row: Any, source: Path) -> None:
    with pytest.raises(Unusable) as unusable:
        _read(source, row)
    assert unusable.value.reason == reason
