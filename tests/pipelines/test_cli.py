"""The command says what it can do, and its exit codes say what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main, parser
from pipelines.config import Config
from pipelines.errors import BAD_INPUT, DONE, FAILED
from pipelines.run import Run
from pipelines.settings import ROOT, Settings

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def commands() -> dict[str, object]:
    actions = [action for action in parser()._actions if action.choices]
    return dict(actions[0].choices or {})  # type: ignore[arg-type]


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert {
        "run",
        "step",
        "status",
        "validate",
        "plan",
        "schema",
        "doctor",
        "promote",
        "rollback",
        "export",
        "gate",
        "compare",
        "scenario",
        "release",
    } <= set(commands())
    for name in commands():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "usage: vlmops" in capsys.readouterr().out


def test_flags_do_not_grow_one_per_field() -> None:
    """Overrides are `--set section.field=value`; a flag per field only ever grows."""
    flags = {option for command in commands().values() for a in command._actions for option in a.option_strings}  # type: ignore[attr-defined]
    alone = {
        "--adapter",
        "--scheme",
        "--group-size",
        "--out",
        "--device",
        "--prompts",
        "--adapter-only",
    }  # there is no config
    common = {"-h", "--help", "--set", "--name", "--config", "--version", "--reason", "--keep"}
    release = {"--format", "--claim", "--image", "--ray-image"}  # of the place that it goes to
    watch = {"--every", "--listen"}  # how long it looks, and who may ask
    changes = {"--yes", "--force", "--models"}  # what is deleted, overwritten, or kept in a backup
    named = common | alone | release | watch | changes
    assert flags == named | {"--against", "--schemes", "--questions"}


EXPORT_ARGUMENTS = (
    "base",
    "--adapter=a b",
    "--scheme=int4_w4a16",
    "--group-size=64",
    "--out=o",
    "--device=cpu",
    "--prompts=3",
)


def test_export_hands_everything_to_the_ml_environment_and_returns_its_code(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "$VLMOPS_HOME" > {tmp_path}/given\nexit 2\n')
    python.chmod(0o755)
    monkeypatch.setenv("VLMOPS_ML_PYTHON", str(python))
    assert main(["export", *EXPORT_ARGUMENTS, "--adapter-only"]) == BAD_INPUT
    module, *arguments, home = (tmp_path / "given").read_text().splitlines()[1:]
    assert module == "training.standalone"
    assert set(arguments) == {*EXPORT_ARGUMENTS, "--adapter-only"}
    assert home == str(settings.home)
    assert main(["export", "base"]) == BAD_INPUT
    assert (tmp_path / "given").read_text().splitlines()[1:-1] == ["training.standalone", "base"]


@pytest.mark.parametrize("wrong", ["--scheme=int3", "--group-size=48", "--device=tpu"])
def test_export_refuses_what_it_does_not_know_at_once(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "base", wrong])
    assert end.value.code == BAD_INPUT
    assert "choose from" in capsys.readouterr().err


def test_ctrl_c_lets_an_export_end_by_itself(tmp_path: Path) -> None:
    """Both get the signal; the command must not kill what says how the export goes on."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ntrap 'sleep 1; echo stopped; exit 1' INT\necho began\nwhile :; do sleep 0.1; done\n")
    python.chmod(0o755)
    command = [sys.executable, "-m", "pipelines.cli", "export", "base"]
    environment = {**os.environ, "VLMOPS_ML_PYTHON": str(python)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "stopped\n"
    assert process.returncode == FAILED


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
