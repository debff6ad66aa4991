"""`vlmops release`, with a real MLflow and in both environments."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot
from pipelines.budget.base import SHAPES
from pipelines.cli import main
from pipelines.errors import BAD_INPUT, DONE
from pipelines.registry import register
from pipelines.run import Run
from pipelines.settings import ROOT, Settings
from pipelines.steps import DOWNLOAD, EVALUATE, EXPORT, REGISTER
from pipelines.system.manifest import write_manifest
from tests.pipelines.finished_run import decide, evaluated_run

WEIGHTS = b'{"lm_head.weight":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
GOLDEN = {"item": "1", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}], "max_tokens": 8}


@pytest.fixture
def run(tracked: Settings, tmp_path: Path) -> Run:
    """A run whose model was registered; of its base there is one number."""
    made = evaluated_run(tracked, "first", f"m-{uuid.uuid4().hex[:8]}")
    for folder in (tmp_path / "base", tmp_path / "model"):
        folder.mkdir()
        (folder / "config.json").write_bytes((SHAPES / "Qwen" / "Qwen3-VL-30B-A3B-Instruct.json").read_bytes())
        (folder / "model.safetensors").write_bytes(len(WEIGHTS).to_bytes(8, "little") + WEIGHTS + b"\0\0")
    (tmp_path / "golden.jsonl").write_text(json.dumps({**GOLDEN, "answer": "7"}) + "\n")
    model = made.read(EXPORT).model_copy(
        update={"path": tmp_path / "model", "digest": write_manifest(tmp_path / "model")}
    )
    report = made.read(EVALUATE).model_copy(update={"golden": tmp_path / "golden.jsonl"})
    made.folder(REGISTER).mkdir()
    version = register(made.config, made.folder(REGISTER), model, report, decide(made, "pass"))
    snapshot = BaseSnapshot(
        path=tmp_path / "base", source="file://base", revision="0" * 40, digest="b" * 64, architecture="Qwen3VL"
    )
    made.folder(DOWNLOAD).mkdir()
    made.write(DOWNLOAD, snapshot, seconds=1, peak_gib=1)
    made.write(REGISTER, version, seconds=1, peak_gib=1)
    return made


def test_a_version_and_its_run_have_the_same_release(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    smoke = (ROOT / "configs" / "smoke.yaml").read_text()
    name = run.config.registry.model
    config.write_text(f"{smoke[: smoke.index('registry:')]}registry:\n  model: {name}\n")
    image = ["--image", "ours/vllm-cpu:0.32.0"]
    assert main(["release", "1", "--config", str(config), "--out", str(tmp_path / "a"), *image]) == DONE
    assert main(["release", str(run.root), "--out", str(tmp_path / "b"), *image]) == DONE
    first, second = (json.loads((tmp_path / out / "release.json").read_text()) for out in "ab")
    assert first | {"created": 0} == second | {"created": 0}
    assert (first["registered"], first["version"]) == (name, 1)
    assert first["engine"]["version"] == "0.32.0"
    assert main(["release", "9", "--config", str(config), *image]) == BAD_INPUT
    assert f"{name} has no version 9; those with an alias: candidate v1" in capfd.readouterr().err
