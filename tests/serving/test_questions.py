"""Questions: what is asked, in which form, and the digest that says whether two reports may be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.config import Images
from pipelines.errors import BadInput
from serving.questions import chat_template, prompt_digest, read_questions

ROW = {
    "id": "a",
    "slice": "digits",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "image": "images/x.png"}, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Seven."}]},
    ],
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """One row."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"png")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


def test_the_last_answer_is_expected_and_never_sent(dataset: Path) -> None:
    [question] = read_questions(dataset)
    assert (question.item, question.slice, question.text, question.expected) == ("a", "digits", "Which?", "Seven.")
    assert question.images == ("images/x.png",)
    assert [message["role"] for message in question.encoded()] == ["system", "user"]


def test_images_are_sent_as_data(dataset: Path) -> None:
    [question] = read_questions(dataset)
    image, text = question.encoded()[1]["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}
    assert text == {"type": "text", "text": "Which?"}


def test_questions_about_the_same_pixels_are_of_one_cluster(dataset: Path) -> None:
    def showing(*images: str) -> dict[str, object]:
        shown = [{"type": "image", "image": f"images/{image}.png"} for image in images]
        asked = {"role": "user", "content": [*shown, {"type": "text", "text": "Which?"}]}
        return ROW | {"messages": [asked, ROW["messages"][-1]]}  # type: ignore[index]

    (dataset / "images" / "copy.png").write_bytes(b"png")
    (dataset / "images" / "y.png").write_bytes(b"other")
    rows = [showing("x"), showing("copy"), showing("y"), showing("x", "y"), showing()]
    (dataset / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    same, copy, other, both, none = [question.cluster for question in read_questions(dataset)]
    assert same == copy
    assert len({same, other, both}) == 3
    assert none is None


def test_no_question_is_an_error(dataset: Path) -> None:
    (dataset / "test.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"data\.test_share"):
        read_questions(dataset)


def test_whatever_changes_the_prompt_changes_its_digest(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("one")
    digests = {prompt_digest(tmp_path, Images(), 8), prompt_digest(tmp_path, Images(), 9)}
    digests.add(prompt_digest(tmp_path, Images(max_pixels=65536), 8))
    (tmp_path / "chat_template.jinja").write_text("two")
    digests.add(prompt_digest(tmp_path, Images(), 8))
    assert len(digests) == 4
    assert prompt_digest(tmp_path, Images(), 8) == prompt_digest(tmp_path, Images(), 8)


def test_chat_templates_are_found_where_they_may_be(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no chat template"):
        chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "older"}))
    assert chat_template(tmp_path) == "older"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert chat_template(tmp_path) == "newer"
