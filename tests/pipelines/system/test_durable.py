"""A file is whole or not there, also when the writer is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.system.durable import append_line, write_text

WRITER = """
import sys
from pathlib import Path
from pipelines.system.durable import write_text
path = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    write_text(path, str(number) * 200_000)
"""


def test_a_killed_writer_leaves_the_old_or_the_new_text(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_text(path, "0" * 200_000)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        started = path.read_text()
        while path.read_text() == started:  # it is writing now
            pass
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        text = path.read_text()
        assert len(text) % 200_000 == 0
        assert text == text[: len(text) // 200_000] * 200_000


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new\ud800")
    assert path.read_text() == "old"


def test_the_mode_is_set_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_text(path, "x", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
