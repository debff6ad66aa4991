"""Duplicates, leaks and shared images: what is held out stays, and what repeats it goes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from training.chat.messages import Message, Part, Split
from training.chat.overlap import count_shared_images, find_duplicates, find_leaks
from training.chat.pictures import Picture
from training.chat.rejects import Origin
from training.chat.rows import Row


def _row(line: int, split: Split | None, image: str, *turns: str) -> Row:
    asked = (Part(type="image", image=image), Part(type="text", text=turns[0]))
    messages = [Message(role=("user", "assistant")[i % 2], content=turns[i]) for i in range(len(turns))]
    messages[0] = Message(role="user", content=asked)
    picture = Picture(image, (64, 64), pixels=image)
    return Row(Origin("data.jsonl", line), str(line), "all", split, tuple(messages), (picture,), "messages")


def _reasons(found: dict[Origin, object]) -> dict[int, str]:
    return {origin.line: str(getattr(reject, "reason", "")) for origin, reject in found.items()}


def test_the_first_of_equal_rows_stays() -> None:
    rows = [_row(1, None, "a", "What?", "7"), _row(2, None, "a", "What?", "7"), _row(3, None, "a", "What?", "8")]
    assert _reasons(find_duplicates(rows)) == {2: "duplicate"}


def test_a_row_that_names_its_split_stays_before_one_that_does_not() -> None:
    rows = [_row(1, None, "a", "What?", "7"), _row(2, "test", "a", "What?", "7")]
    assert _reasons(find_duplicates(rows)) == {1: "duplicate"}


def test_equal_rows_of_two_named_splits_are_a_leak_and_no_duplicate() -> None:
    rows = [_row(1, "train", "a", "What?", "7"), _row(2, "test", "a", "What?", "7")]
    assert find_duplicates(rows) == {}
    assert _reasons(find_leaks(rows)) == {1: "test leakage"}


def test_a_question_that_is_held_out_leaks_whatever_the_answer_and_in_any_turn() -> None:
    rows = [
        _row(1, "train", "a", "What?", "8"),
        _row(2, "train", "a", "What?", "7", "And now?", "6"),
        _row(3, "train", "b", "What?", "7"),
        _row(4, "eval", "a", "What?", "7"),
        _row(5, "train", "c", "What?", "7"),
        _row(6, "eval", "c", "What?", "7"),
        _row(7, "test", "a", "What?", "7"),
    ]
    assert _reasons(find_leaks(rows)) == {1: "test leakage", 2: "test leakage", 4: "test leakage", 5: "eval leakage"}


def test_another_question_of_the_same_image_is_counted_and_allowed() -> None:
    rows = [_row(1, "train", "a", "Why?", "7"), _row(2, "train", "b", "Why?", "7"), _row(3, "test", "a", "What?", "7")]
    assert find_leaks(rows) == {}
    assert count_shared_images(rows) == 1


ROWS = st.lists(
    st.tuples(st.sampled_from(["train", "eval", "test"]), st.sampled_from("ab"), st.sampled_from(["x?", "y?"])),
    max_size=12,
)


@given(described=ROWS)
def test_afterwards_no_question_is_in_two_splits_and_no_test_row_is_lost(
    described: Sequence[tuple[Split, str, str]],
) -> None:
    rows = [_row(i, split, image, question, "7") for i, (split, image, question) in enumerate(described)]
    leaks = find_leaks(rows)
    kept = [row for row in rows if row.origin not in leaks]
    splits: dict[str, set[Split | None]] = {}
    for row in kept:
        splits.setdefault(row.question, set()).add(row.split)
    assert all(len(of) == 1 for of in splits.values())
    assert sum(row.split == "test" for row in kept) == sum(row.split == "test" for row in rows)
