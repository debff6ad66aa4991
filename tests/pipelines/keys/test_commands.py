"""`vlmops keys`: the key once, names and limits ever after."""

from __future__ import annotations

import pytest

from pipelines.cli import main
from pipelines.errors import BAD_INPUT, DONE
from pipelines.keys.store import digest, read_keys
from pipelines.settings import Settings


def test_add_list_revoke(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "team-a", "--per-minute", "30", "--days", "7"]) == DONE
    added = capsys.readouterr()
    key = added.out.strip()
    assert digest(key) == read_keys(settings)[0].sha256
    assert "only time" in added.err
    assert main(["keys", "list"]) == DONE
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("team-a", "30", "good"))
    assert key not in shown
    assert main(["keys", "rotate", "team-a"]) == DONE
    assert capsys.readouterr().out.strip() not in {"", key}
    assert main(["keys", "rotate", "default"]) == DONE
    rotated = capsys.readouterr()
    assert (rotated.out, "front_key" in rotated.err) == ("", True)
    assert main(["keys", "revoke", "team-a"]) == DONE
    assert main(["keys", "list"]) == DONE
    assert "revoked" in capsys.readouterr().out


def test_bad_input_has_its_exit_code(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "revoke", "nobody"]) == BAD_INPUT
    assert main(["keys", "add", "Not A Name"]) == BAD_INPUT
    assert "vlmops: no key 'Not A Name' can be made" in capsys.readouterr().err
