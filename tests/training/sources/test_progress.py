"""Without a terminal a download speaks in lines, of bytes that came now and of those that were there."""

from __future__ import annotations

import re

import pytest

from training.sources.progress import TransferProgress


def test_lines_name_bytes_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 10.0, 12.0])
    progress = TransferProgress(4_000_000_000, clock=lambda: next(clock))
    progress.found(1_000_000_000)
    progress.received(1_000_000_000)
    progress.received(1)  # too soon for another line
    progress.stop()
    assert re.sub(r"\s+", " ", capsys.readouterr().err).strip() == ("downloading 2.00 of 4.00 GB 100.0 MB/s 20 s left")
