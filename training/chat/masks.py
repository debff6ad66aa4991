"""The proof, row by row, that exactly the answers are learned and that every image has all of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from training.chat.encoding import IGNORE, Encoded, Encoder, Unencodable


def prove(row: Encoded, encoder: Encoder, answers: Sequence[str], visual: Sequence[int]) -> None:
    """Check a row's labels and image marks against what they were made from.

    Args:
        row: Encoded, with or without pixels.
        encoder: That encoded it.
        answers: The text of each answer, in order.
        visual: Tokens of each image, in order.

    Raises:
        Unencodable: A label differs from its token, the labelled tokens do not decode to the answers and their end
            tokens, a label stands in an image, or an image has lost a token.
    """
    ids, labels, marks = row.input_ids.tolist(), row.labels.tolist(), row.image_mask.tolist()
    if not len(ids) == len(labels) == len(marks):
        raise Unencodable(f"{len(ids)} tokens, {len(labels)} labels, {len(marks)} image marks")
    if any(label not in (IGNORE, token) for token, label in zip(ids, labels, strict=True)):
        raise Unencodable("a label is not its own token")
    if any(mark and label != IGNORE for mark, label in zip(marks, labels, strict=True)):
        raise Unencodable("a label stands in an image")
    if (found := _lengths(marks)) != list(visual):
        raise Unencodable(f"the images take {found} tokens, and should take {list(visual)}")
    _prove_answers(_learned(labels), encoder, answers)


def _prove_answers(learned: list[list[int]], encoder: Encoder, answers: Sequence[str]) -> None:
    end = encoder.tokenizer.eos_token
    if len(learned) != len(answers):
        raise Unencodable(f"{len(learned)} stretches of labels, {len(answers)} answers")
    for tokens, answer in zip(learned, answers, strict=True):
        text = encoder.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text != answer + end:
            raise Unencodable(
                f"the labels say {text[-60:]!r} where the answer is {answer[-60:]!r}: tokenizer or chat template "
                "rewrite it; write it as they do (Unicode form NFC, no white space at the ends)"
            )


def _learned(labels: Sequence[int]) -> list[list[int]]:
    """Labels that follow one another without a gap."""
    return [list(run) for learned, run in groupby(labels, lambda label: label != IGNORE) if learned]


def _lengths(marks: Sequence[int]) -> list[int]:
    return [len(list(run)) for mark, run in groupby(marks) if mark]
