"""A release as files: checked before it is written, and whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from pipelines.artifacts import BaseSnapshot, ModelVersion
from pipelines.budget.base import SHAPES
from pipelines.errors import BadInput
from pipelines.run import RELEASES, Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, REGISTER
from pipelines.system.manifest import ManifestMismatch, write_manifest
from serving.exporters.place import Claim
from serving.release import Release
from serving.release_files import Order, find_version, main, write_release
from tests.serving.exporters.released import config, version

CLAIM = Claim.parse("models/qwen-int8")
EVERYTHING = ("compose", "kserve", "production-stack", "rayservice")


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Run:
    """A run that registered version 3; of its base and its model there is one tensor each."""
    made = Run.create(settings.runs / "first", config())
    base, model = tmp_path / "base", tmp_path / "model"
    for folder in (base, model):
        folder.mkdir()
        shutil.copyfile(SHAPES / "Qwen" / "Qwen3-VL-30B-A3B-Instruct.json", folder / "config.json")
        save_file({"lm_head.weight": np.zeros((4, 4), np.float16)}, folder / "model.safetensors")
    registered = version(made.config, tmp_path / "golden")
    digest = write_manifest(model)
    _write(made, REGISTER, registered.model_copy(update={"uri": model.as_uri(), "digest": digest}))
    snapshot = BaseSnapshot(path=base, source="file://base", revision="0" * 40, digest="b" * 64, architecture="Qwen3VL")
    _write(made, DOWNLOAD, snapshot)
    return made


def _write(run: Run, step: object, artifact: object) -> None:
    folder = run.folder(step)  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    record = {"inputs": "i", "artifact": artifact.model_dump(mode="json"), "seconds": 1, "peak_gib": 1}  # type: ignore[attr-defined]
    (folder / "output.json").write_text(json.dumps(record))


def registered(run: Run) -> ModelVersion:
    return run.read(REGISTER)


def test_a_release_can_be_taken_elsewhere(run: Run, tmp_path: Path) -> None:
    order = Order(out=tmp_path / "out", formats=EVERYTHING, claim=CLAIM, ray_image="ours/ray-vllm:0.32.0")
    out = write_release(run, registered(run), order)
    names = {path.name for path in out.iterdir()}
    assert names == {"release.json", "golden", *(f"{name}.yaml" for name in EVERYTHING)}
    assert json.loads((run.root / RELEASES / "written.jsonl").read_text()) == {"to": str(out)}
    release = Release.model_validate_json((out / "release.json").read_text())
    assert (release.version, release.model.digest) == (3, registered(run).digest)
    assert (out / "golden" / "golden.jsonl").is_file()
    assert (out / "golden" / "images" / "1.png").read_bytes() == b"an image"
    compose = yaml.safe_load((out / "compose.yaml").read_text())
    [volume] = compose["services"]["engine"]["volumes"]
    assert str(tmp_path / "model") in volume["source"]


def test_another_golden_image_or_answer_is_another_digest(run: Run, tmp_path: Path) -> None:
    def digest() -> str:
        write_release(run, registered(run), Order(out=tmp_path / "out"))
        return Release.model_validate_json((tmp_path / "out" / "release.json").read_text()).probes.golden_digest

    first = digest()
    assert digest() == first
    (tmp_path / "golden" / "images" / "1.png").write_bytes(b"another image")
    second = digest()
    golden = tmp_path / "golden" / "golden.jsonl"
    golden.write_text(golden.read_text().replace('"answer": "7"', '"answer": "1"'))
    assert len({first, second, digest()}) == 3


def test_a_model_that_was_changed_is_not_released(run: Run, tmp_path: Path) -> None:
    save_file({"lm_head.weight": np.ones((4, 4), np.float16)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ManifestMismatch, match=r"model\.safetensors is not the file that was written"):
        write_release(run, registered(run), Order(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_one_manifest_cannot_be(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="--claim"):
        write_release(run, registered(run), Order(out=out, formats=("compose", "kserve")))
    with pytest.raises(BadInput, match=r"Ray and vLLM 0\.32\.0; name one by --ray-image"):
        write_release(run, registered(run), Order(out=out, formats=("rayservice",), claim=CLAIM))
    assert not out.exists()


def test_a_run_that_registered_nothing_says_so(settings: Settings, run: Run) -> None:
    shutil.rmtree(run.folder(REGISTER))
    with pytest.raises(BadInput, match="register has not finished"):
        find_version(str(run.root), settings.config, settings)


def test_the_command_writes_beside_the_run_and_says_what(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.root)]) == 0
    assert capsys.readouterr().out == f"{run.root / 'release'}: compose.yaml, golden, release.json\n"
    assert main([str(run.root), "--format", "kserve"]) == 2
    assert "--claim NAME/PATH" in capsys.readouterr().err
