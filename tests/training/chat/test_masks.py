"""The proof that exactly the answers are learned: it holds for every row we make, and fails for every spoiled one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unicodedata import normalize

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.chat.encoding import IGNORE, Encoded, Encoder, Unencodable
from training.chat.masks import prove

SIZES = st.lists(st.tuples(st.integers(32, 600), st.integers(32, 600)), max_size=3)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


def _chat(questions: list[str], answers: list[str], images: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        marks = [{"type": "image", "image": "x"}] * images if i == 0 else []
        messages.append({"role": "user", "content": [*marks, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), sizes=SIZES)
def test_the_labels_of_any_row_decode_to_its_answers(
    turns: list[tuple[str, str]], sizes: list[tuple[int, int]], encoder: Encoder
) -> None:
    questions, answers = ([normalize("NFC", text) for text in column] for column in zip(*turns, strict=True))
    row = encoder.outline(_chat(questions, answers, len(sizes)), sizes)
    prove(row, encoder, answers, encoder.visual_tokens(sizes))
    learned = row.input_ids[row.labels != IGNORE]
    end = encoder.tokenizer.eos_token
    assert encoder.tokenizer.decode(learned) == "".join(answer + end for answer in answers)


@pytest.fixture
def row(encoder: Encoder) -> Encoded:
    return encoder.outline(_chat(["a?", "b?"], ["One.", "Two."], 2), [(64, 64), (96, 64)])


def _set(row: Encoded, name: str, place: int, value: int) -> Encoded:
    tensor: torch.Tensor = getattr(row, name).clone()
    tensor[place] = value
    return replace(row, **{name: tensor})


def test_every_spoiled_label_is_found(row: Encoded, encoder: Encoder) -> None:
    prove(row, encoder, ["One.", "Two."], [4, 6])
    for place, label in enumerate(row.labels.tolist()):
        spoiled = int(row.input_ids[place]) if label == IGNORE else IGNORE
        with pytest.raises(Unencodable):
            prove(_set(row, "labels", place, spoiled), encoder, ["One.", "Two."], [4, 6])


def test_every_lost_visual_token_is_found(row: Encoded, encoder: Encoder) -> None:
    for place in row.image_mask.nonzero()[:, 0].tolist():
        with pytest.raises(Unencodable, match="the images take"):
            prove(_set(row, "image_mask", place, 0), encoder, ["One.", "Two."], [4, 6])


def test_a_label_that_is_not_its_token_is_found(row: Encoded, encoder: Encoder) -> None:
    with pytest.raises(Unencodable, match="not its own token"):
        prove(_set(row, "labels", -1, 5), encoder, ["One.", "Two."], [4, 6])


def test_an_answer_that_the_tokenizer_rewrites_is_refused(encoder: Encoder) -> None:
    decomposed = "cafe\u0301"
    row = encoder.outline(_chat(["a?"], [decomposed], 0), [])
    with pytest.raises(Unencodable, match="NFC"):
        prove(row, encoder, [decomposed], [])
