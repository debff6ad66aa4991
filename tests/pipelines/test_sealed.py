"""Each look at sealed items is noted, and too many different candidates are refused."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipelines.errors import BadInput
from pipelines.sealed import Attempt, SealedSplit, locked_splits
from tests.pipelines.judgement.sides import report


@pytest.fixture
def split(tmp_path: Path) -> SealedSplit:
    return SealedSplit(tmp_path / f"{'t' * 64}.jsonl")


def attempt(model: str, reference: str = "base") -> Attempt:
    return Attempt(
        time=datetime.now(UTC), run="r", model=model, reference="base", reference_model=reference, outcome="fail"
    )


def test_a_look_is_noted_and_found_again(split: SealedSplit) -> None:
    assert split.attempts() == ()
    noted = [attempt("a"), attempt("b")]
    for each in noted:
        with split.locked():
            split.note(each)
    assert list(split.attempts()) == noted


def test_the_quota_counts_candidates_not_looks(split: SealedSplit) -> None:
    for model in ("a", "b", "a", "a"):
        split.require_attempt(model, "base", 2)
        split.note(attempt(model))
    split.require_attempt("b", "base", 2)
    with pytest.raises(
        BadInput, match=r"2 candidates .* gate\.attempts is 2 .*t{64}\.jsonl.* new test items, or raise"
    ):
        split.require_attempt("c", "base", 2)
    split.require_attempt("c", "base", 3)


def test_each_reference_has_its_own_quota(split: SealedSplit) -> None:
    split.note(attempt("a", "base"))
    split.require_attempt("b", "champion", 1)
    with pytest.raises(BadInput):
        split.require_attempt("b", "base", 1)


def test_two_decisions_at_once_do_not_both_take_the_last_attempt(split: SealedSplit) -> None:
    def look(model: str) -> None:
        with split.locked():
            split.require_attempt(model, "base", 3)
            time.sleep(0.01)  # both would have counted by now
            split.note(attempt(model))

    with ThreadPoolExecutor(8) as threads:
        looks = [threads.submit(look, model) for model in "abcdefgh"]
    refused = [look.exception() for look in looks if look.exception()]
    assert [type(error) for error in refused] == [BadInput] * 5
    assert len(split.attempts()) == 3


def test_the_test_split_and_each_scenario_are_sealed_by_their_own_digests(tmp_path: Path) -> None:
    asked = [{"name": name, "digest": name, "requirements": []} for name in ("shop", "clinic")]

    def names(**facts: object) -> dict[str, str]:
        with locked_splits(tmp_path, report(**facts)) as splits:
            return {split.file.stem: split.name for split in splits}

    assert names(test_digest="all", data_digest="data", scenarios=asked) == {
        "clinic": "scenario clinic",
        "data": "this test split",
        "shop": "scenario shop",
    }
    assert names(test_digest="all") == {"all": "this test split"}  # a report of an earlier version


@pytest.mark.parametrize("damage", ['{"time": "2026-', "{}", "", '{"model": "a"}'])
def test_a_damaged_line_is_not_taken_for_none(split: SealedSplit, damage: str) -> None:
    split.note(attempt("a"))
    with split.file.open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(BadInput, match=r"\.jsonl, line 2: no record of a gate's decision"):
        split.require_attempt("b", "base", 20)


@examples(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.integers(1, 5))
def test_never_more_candidates_than_the_quota(tmp_path: Path, models: list[str], quota: int) -> None:
    split = SealedSplit(tmp_path / f"{abs(hash((*models, quota)))}.jsonl")
    split.file.unlink(missing_ok=True)
    for model in models:
        try:
            split.require_attempt(model, "base", quota)
        except BadInput:
            continue
        split.note(attempt(model))
    seen = {noted.model for noted in split.attempts()}
    assert len(seen) == min(quota, len(set(models)))
