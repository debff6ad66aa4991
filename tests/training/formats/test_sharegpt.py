"""ShareGPT: every image where its tag was, and as many tags as images."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.chat.messages import parse_line
from training.chat.rejects import Unusable
from training.formats.sharegpt import is_sharegpt, to_messages


def _row(value: Any, answer: str = "That.", **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}], **fields}


def _asked(fields: dict[str, Any]) -> list[str]:
    line = parse_line(to_messages(fields), set())
    return [str(part.image if part.type == "image" else part.text) for part in line.messages[-2].parts]


SWIFT = {
    "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "That."}],
    "images": ["a.png"],
}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (_row("<image>\nWhat?", images=["a.png"]), ["a.png", "\nWhat?"]),
        (_row("What is <image>?", image="a.png"), ["What is ", "a.png", "?"]),
        (_row("<image><image>Same?", images=["a.png", "b.png"]), ["a.png", "b.png", "Same?"]),
        (_row("What?"), ["What?"]),
        (_row("<image>", images=[{"bytes": None, "path": "a.png"}]), ["a.png"]),
        (_row("<image>", images=[{"bytes": b"picture", "path": "a.png"}]), ["b'picture'"]),
        (SWIFT, ["a.png", "What?"]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["<image>Q", "A"]}, "image": "a.png"}, ["a.png", "Q"]),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Q"}]},
                    {"role": "assistant", "content": "A"},
                ],
                "image": "a.png",
            },
            ["a.png", "Q"],
        ),
    ],
)
def test_each_dialect_gives_the_same_parts(fields: dict[str, Any], parts: list[str]) -> None:
    assert is_sharegpt(fields)
    assert _asked(fields) == parts


def test_names_splits_slices_and_the_system_prompt_are_kept_and_other_fields_are_not_used() -> None:
    line = parse_line(to_messages(_row("Q", id=7, slice="s", split="test", system="Be brief.", source="x")), set())
    assert (line.id, line.slice, line.split) == ("7", "s", "test")
    assert next((m.role, m.text) for m in line.messages) == ("system", "Be brief.")


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("image count", _row("<image>What?")),
        ("image count", _row("What?", images=["a.png"])),
        ("image count", _row("<image><image>", images=["a.png"])),
        ("image count", _row("<image>", images=["a.png", "b.png"])),
        ("image in an answer", _row("What?", answer="Here: <image>", images=["a.png"])),
        ("unsupported fields", _row("<image>", images=["a.png"], videos=["a.mp4"])),
        ("unknown role", {"conversations": [{"from": "observation", "value": "x"}]}),
        ("unknown role", {"messages": [{"role": [], "content": "x"}], "images": []}),
        ("wrong fields", {"conversations": "x"}),
        ("wrong fields", {"conversations": ["x"]}),
        ("wrong fields", _row(None)),
        ("wrong fields", _row(["x"])),
        ("wrong fields", _row("<image>", images=[7])),
        ("wrong fields", _row("<image>", images=[""])),
        ("wrong turns", {"conversations": [], "images": []}),
        ("empty answer", _row("What?", answer=" ")),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(reason: str, fields: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as unusable:
        parse_line(to_messages(fields), set())
    assert unusable.value.reason == reason


def test_messages_with_images_where_they_are_meant_are_not_sharegpt() -> None:
    part = {"type": "image", "image": "a.png"}
    assert not is_sharegpt({"id": "x", "messages": [{"role": "user", "content": [part]}]})
    assert not is_sharegpt({"id": "x", "messages": [{"role": "user", "content": "What?"}]})


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1), min_size=1, max_size=5))
def test_tags_and_images_meet_in_order_whatever_stands_between(texts: list[str]) -> None:
    names = [f"{i}.png" for i in range(len(texts) - 1)]
    parts = _asked(_row("<image>".join(texts), images=names))
    assert parts == [part for pair in zip(texts, [*names, ""], strict=True) for part in pair][:-1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["<image>", "human", "user", "a.png", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "role", "content", "type", "image", "bytes"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["conversations", "messages", "images", "image", "system", "id"]), JSON))
def test_whatever_a_row_holds_it_is_read_or_refused(fields: dict[str, Any]) -> None:
    refused = None
    try:
        parse_line(to_messages(fields), set())
    except Unusable as error:
        refused = error.reason
    assert refused != ""
