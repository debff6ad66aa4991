"""The command says what it can do, and its exit codes say what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main, parser
from pipelines.config import Config
from pipelines.errors import BAD_INPUT, DONE
from pipelines.run import Run
from pipelines.settings import ROOT, Settings

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def commands() -> dict[str, object]:
    actions = [action for action in parser()._actions if action.choices]
    return dict(actions[0].choices or {})  # type: ignore[arg-type]


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"run", "step", "status", "validate", "plan", "schema", "doctor", "promote", "rollback"} <= set(commands())
    for name in commands():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "usage: vlmops" in capsys.readouterr().out


def test_flags_do_not_grow_one_per_field() -> None:
    """Overrides are `--set section.field=value`; a flag per field only ever grows."""
    flags = {option for command in commands().values() for a in command._actions for option in a.option_strings}  # type: ignore[attr-defined]
    assert flags == {"-h", "--help", "--set", "--name", "--config", "--version", "--reason", "--keep"}


def test_validate_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", SMOKE, "--set", "lora.rank=4"]) == DONE
    assert Config.model_validate_json(capsys.readouterr().out).lora.rank == 4


def test_schema_is_json_with_help_for_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == DONE
    schema = json.loads(capsys.readouterr().out)
    assert set(Config.model_fields) == set(schema["properties"])


def test_a_wrong_config_is_bad_input_and_leaves_nothing(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", SMOKE, "--set", "lora.rank=0"]) == BAD_INPUT
    assert "lora.rank = 0" in capsys.readouterr().err
    assert not settings.home.exists()


def test_a_second_config_in_the_same_run_is_refused(
    settings: Settings, smoke: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    Run.create(settings.runs / "smoke", smoke)
    assert main(["run", SMOKE, "--set", "lora.rank=4"]) == BAD_INPUT
    assert "another config" in capsys.readouterr().err


def test_status_of_no_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == BAD_INPUT
    assert "holds no run" in capsys.readouterr().err


def test_status_lists_runs_and_steps(settings: Settings, smoke: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(settings.runs / "first", smoke)
    assert main(["status"]) == DONE
    assert "first" in capsys.readouterr().out
    assert main(["status", str(run.root)]) == DONE
    assert "finetune" in capsys.readouterr().out
