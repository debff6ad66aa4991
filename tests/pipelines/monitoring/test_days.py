"""Rows by day: nothing is lost or counted twice, whatever crashes in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipelines.monitoring.days import Days
from pipelines.monitoring.place import history_schema

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def row(moment: datetime, value: float = 1.0) -> dict[str, object]:
    return {"time": moment.timestamp(), "values": {'a{b="c"}': value}}


def test_a_day_becomes_parquet_when_it_is_over_and_reads_the_same(tmp_path: Path) -> None:
    days = Days(tmp_path)
    rows = [row(NOON - timedelta(days=1, hours=n), n) for n in range(3)] + [row(NOON)]
    for each in rows:
        days.append(each)
    days.close(history_schema(), NOON)
    assert {path.name for path in tmp_path.iterdir()} == {"2026-11-23.parquet", "2026-11-24.jsonl"}
    assert list(days.since(NOON - timedelta(days=9))) == rows
    days.close(history_schema(), NOON)
    assert list(days.since(NOON - timedelta(hours=1))) == rows[-1:]


def test_just_after_midnight_yesterday_is_left_to_its_last_writer(tmp_path: Path) -> None:
    days = Days(tmp_path)
    midnight = NOON.replace(hour=0)
    days.append(row(midnight - timedelta(seconds=1)))
    days.close(history_schema(), midnight + timedelta(seconds=30))
    assert (tmp_path / "2026-11-23.jsonl").is_file()
    days.close(history_schema(), midnight + timedelta(minutes=6))
    assert (tmp_path / "2026-11-23.parquet").is_file()


def test_a_line_that_a_crash_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    days = Days(tmp_path)
    days.append(row(NOON))
    with (tmp_path / "2026-11-24.jsonl").open("a") as file:
        file.write('{"time": 1')
    assert list(days.since(NOON - timedelta(days=1))) == [row(NOON)]
    days.append(row(NOON, 2))
    assert list(days.since(NOON - timedelta(days=1))) == [row(NOON), row(NOON, 2)]


def test_a_row_that_does_not_fit_costs_itself_alone(tmp_path: Path) -> None:
    days = Days(tmp_path)
    yesterday = NOON - timedelta(days=1)
    for values in ("of another version", {"a": "text"}, [1]):
        days.append({"time": yesterday.timestamp(), "values": values})
    days.append(row(yesterday))
    days.close(history_schema(), NOON)
    assert list(days.since(yesterday)) == [row(yesterday)]


def test_rows_that_come_to_a_closed_day_join_it(tmp_path: Path) -> None:
    days = Days(tmp_path)
    rows = [row(NOON - timedelta(days=1, hours=n), n) for n in range(3)]
    for each in rows:
        days.append(each)
        days.close(history_schema(), NOON)  # by a clock that was put back in between
    assert list(days.since(NOON - timedelta(days=9))) == rows


def test_a_crash_between_parquet_and_lines_counts_nothing_twice(tmp_path: Path) -> None:
    days = Days(tmp_path)
    days.append(row(NOON - timedelta(days=1)))
    lines = (tmp_path / "2026-11-23.jsonl").read_bytes()
    days.close(history_schema(), NOON)
    (tmp_path / "2026-11-23.jsonl").write_bytes(lines)
    assert len(list(days.since(NOON - timedelta(days=2)))) == 1


def test_what_is_old_goes(tmp_path: Path) -> None:
    days = Days(tmp_path)
    for age in range(5):
        days.append(row(NOON - timedelta(days=age)))
    days.close(history_schema(), NOON)
    days.forget(2, NOON)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["2026-11-22", "2026-11-23", "2026-11-24"]


@given(st.lists(st.integers(0, 200), max_size=20))
def test_rows_come_back_whatever_their_hours(hours: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        days = Days(Path(folder))
        for hour in hours:
            days.append(row(NOON - timedelta(hours=hour)))
        days.close(history_schema(), NOON)
        found = [each["time"] for each in days.since(NOON - timedelta(days=30))]
    assert sorted(found) == sorted((NOON - timedelta(hours=hour)).timestamp() for hour in hours)
