"""`vlmops stack init`: secrets that nobody has seen, for their owner alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from pipelines.cli import main
from pipelines.errors import BAD_INPUT, DONE
from pipelines.stack.env_file import SECRETS, env_file
from tests.stack.production import variables


def init(path: Path, *options: str) -> int:
    return main(["stack", "init", "--out", str(path), *options])


def test_it_is_for_its_owner_alone_and_nothing_of_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / ".env") == DONE
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    values = variables((tmp_path / ".env").read_text())
    printed = "".join(capsys.readouterr())
    assert str(tmp_path / ".env") in printed
    assert not [name for name in (*SECRETS, "AIRFLOW_FERNET_KEY") if values[name] in printed]


def test_every_secret_is_long_and_its_own(tmp_path: Path) -> None:
    first, second = variables(env_file()), variables(env_file())
    told = [values[name] for values in (first, second) for name in (*SECRETS, "AIRFLOW_FERNET_KEY")]
    assert len(set(told)) == 2 * (len(SECRETS) + 1)
    assert min(map(len, told)) >= 43  # 256 bits
    Fernet(first["AIRFLOW_FERNET_KEY"])


def test_one_that_is_there_is_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path / ".env")
    before = (tmp_path / ".env").read_text()
    assert init(tmp_path / ".env") == BAD_INPUT
    assert "databases that were made with it know no other passwords" in capsys.readouterr().err
    assert (tmp_path / ".env").read_text() == before
    (tmp_path / ".env").chmod(0o644)
    assert init(tmp_path / ".env", "--force") == DONE
    assert (tmp_path / ".env").read_text() != before
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
