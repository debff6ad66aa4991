"""Answers as Parquet: whole or refused, typed, and what earlier versions wrote is still read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.answers import ANSWERS, EARLIER_ANSWERS, answers_file, read_answers, schema, write_answers
from pipelines.errors import BadInput
from pipelines.evaluation import Answer
from pipelines.system import durable

ANSWER = Answer(
    item="q1", slice="catalog/attributes", expected='{"colour": "red"}', text="röd\n", finish_reason="stop",
    seconds=0.25, cluster="c" * 64, score=1 / 3, marks={"schema_valid": True, "abstained": False}, prompt_tokens=70,
    answer_tokens=3, request_bytes=4096,
)  # fmt: skip
PLAIN = Answer(item="q2", slice="digits", expected="7", text="", finish_reason="length", seconds=0.1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two answers."""
    write_answers(tmp_path / ANSWERS, [ANSWER, PLAIN])
    return tmp_path / ANSWERS


def test_what_is_written_is_read(file: Path) -> None:
    assert read_answers(file) == {"q1": ANSWER, "q2": PLAIN}


def test_the_columns_are_the_fields_of_an_answer(file: Path) -> None:
    import pyarrow.parquet as pq

    assert schema().names == list(Answer.model_fields)
    read = pq.read_table(file)
    assert read.schema.equals(schema())
    assert read.column("score").to_pylist() == [1 / 3, None]
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"


text = st.text(st.characters(exclude_categories=["Cs"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.builds(
        Answer,
        item=text, slice=text, expected=text, text=text, finish_reason=text, seconds=st.floats(0, 1e4),
        cluster=st.none() | text, score=st.none() | st.floats(0, 1), marks=st.dictionaries(text, st.booleans()),
        prompt_tokens=st.none() | st.integers(0, 2**40), answer_tokens=st.none(),
        request_bytes=st.none() | st.integers(0, 2**40),
    )
)  # fmt: skip
def test_every_answer_survives(tmp_path: Path, answer: Answer) -> None:
    write_answers(tmp_path / ANSWERS, [answer])
    assert read_answers(tmp_path / ANSWERS) == {answer.item: answer}


def test_no_answers_are_no_fault(tmp_path: Path) -> None:
    write_answers(tmp_path / ANSWERS, [])
    assert read_answers(tmp_path / ANSWERS) == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(BadInput, match=r"answers\.parquet cannot be read as answers: .*; evaluate again"):
        read_answers(file)


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    write_answers(tmp_path / ANSWERS, [PLAIN.model_copy(update={"item": str(number)}) for number in range(500)])
    content = bytearray((tmp_path / ANSWERS).read_bytes())
    content[len(content) // 8] ^= 1
    (tmp_path / ANSWERS).write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as answers"):
        read_answers(tmp_path / ANSWERS)


def test_other_columns_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"item": ["1"], "reply": ["7"]}), tmp_path / ANSWERS)
    with pytest.raises(BadInput, match=r"its columns are item string, reply string, wanted are item string, slice"):
        read_answers(tmp_path / ANSWERS)


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_that_is_none_is_refused(file: Path, score: float) -> None:
    write_answers(file, [PLAIN.model_copy(update={"score": score})])
    with pytest.raises(BadInput, match=r"cannot be read as answers: (.|\n)*score"):
        read_answers(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"{tmp_path}/{ANSWERS} cannot be read"):
        read_answers(tmp_path / ANSWERS)


def test_a_crash_while_writing_leaves_the_old_answers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(durable.os, "fsync", crash)
    with pytest.raises(OSError, match="No space"):
        write_answers(file, [PLAIN])
    assert len(read_answers(file)) == 2


def test_answers_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They had no scores, marks or tokens."""
    row = '{"item":"q2","slice":"digits","expected":"7","text":"","finish_reason":"length","seconds":0.1}\n'
    (tmp_path / EARLIER_ANSWERS).write_text(row)
    assert answers_file(tmp_path) == tmp_path / EARLIER_ANSWERS
    assert read_answers(answers_file(tmp_path)) == {"q2": PLAIN}


def test_a_broken_line_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / EARLIER_ANSWERS).write_text('{"item": "q2"')
    with pytest.raises(BadInput, match=r"answers\.jsonl cannot be read as answers"):
        read_answers(tmp_path / EARLIER_ANSWERS)


def test_new_answers_win_over_earlier_ones(file: Path) -> None:
    (file.parent / EARLIER_ANSWERS).touch()
    assert answers_file(file.parent) == file
    assert answers_file(file.parent / "nowhere").name == ANSWERS
