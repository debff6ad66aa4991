"""`vlmops export` alone: any checkpoint and any adapter that belongs to it, refused by name before a weight is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifact import Artifact
from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.errors import BAD_INPUT, DONE, FAILED
from pipelines.run import Run
from pipelines.settings import ROOT
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE, Step
from pipelines.system.manifest import NAME, read_manifest, verify_manifest
from tests.training.parts import Configure, adapted_model, store_adapter
from training.standalone import main
from training.weights import making, shards

Refused = Callable[..., str]


def export(*arguments: object) -> int:
    """The exit code of an export that compares no predictions."""
    return main([*map(str, arguments), "--prompts=0"])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def recorded(run: Run, base: BaseSnapshot, data: Dataset, adapter: Adapter) -> Run:
    """A run whose steps before the export have finished."""
    steps: list[tuple[Step[Any], Artifact]] = [(DOWNLOAD, base), (PREPARE, data), (FINETUNE, adapter)]
    for step, artifact in steps:
        run.folder(step).mkdir()
        record = {"inputs": "", "artifact": artifact.model_dump(mode="json"), "seconds": 1, "peak_gib": 1}
        (run.folder(step) / "output.json").write_text(json.dumps(record))
    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Ask for an export that must be refused, with no byte of a weight of the base read; returns why."""

    original = shards.Stored.read_bytes

    def read(stored: shards.Stored, into: memoryview, first: int = 0) -> None:
        if "lora" not in stored.name:
            raise AssertionError(f"{stored.name} was read")
        original(stored, into, first)

    def ask(*arguments: object, code: int = BAD_INPUT) -> str:
        monkeypatch.setattr(shards.Stored, "read_bytes", read)
        out = tmp_path / "refused"
        assert main([*map(str, arguments), f"--out={out}"]) == code
        assert not out.exists()
        return capsys.readouterr().err

    return ask


@pytest.fixture
def base(any_base: BaseSnapshot, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(any_base.path, tmp_path / "base")


def test_a_checkpoint_alone_is_rounded_and_served_as_it_is(
    any_base: BaseSnapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(any_base.path), f"--out={out}"]) == DONE
    verify_manifest(out)
    assert read_manifest(out)["made_from"] == {"base": any_base.digest}
    said = capsys.readouterr().out
    assert "int8_w8a8" in said
    assert "relative error 0.00" in said
    assert "predictions, exported" in said
    assert {file.name for file in tmp_path.iterdir()} == {"out"}
    assert f"vllm serve {out}\n" in said
    assert "quantization_config" in json.loads((out / "config.json").read_text())


def test_a_run_brings_base_adapter_data_and_settings(
    any_base: BaseSnapshot,
    data: Dataset,
    adapter: Adapter,
    configure: Configure,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configure("images.max_pixels=16384", "export.parity.prompts=2")
    run = recorded(Run.create(tmp_path / "run", config), any_base, data, adapter)
    assert main([str(run.root), "--scheme=bf16"]) == DONE
    merged = run.root / "exports" / "bf16"
    assert read_manifest(merged)["made_from"] == {"base": any_base.digest, "adapter": adapter.digest}
    assert '"longest_edge": 16384' in (merged / "preprocessor_config.json").read_text()
    assert main([str(run.root), "--scheme=int4_w4a16", "--group-size=32"]) == DONE
    assert read_manifest(run.root / "exports" / "int4_w4a16")["group_size"] == 32
    assert "groups of 32" in capsys.readouterr().out
    assert main([str(run.root), "--adapter-only"]) == DONE
    assert (run.root / "exports" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_model_that_predicts_otherwise_than_a_run_allows_gets_no_folder(
    moe_base: BaseSnapshot, data: Dataset, configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    run = recorded(Run.create(tmp_path / "run", configure("export.parity.max_kl=1e-12")), moe_base, data, adapter)
    assert main([str(run.root)]) == FAILED
    assert "does not predict what the base with its adapter does" in capsys.readouterr().err
    assert not (run.root / "exports" / "int8_w8a8").exists()


def test_a_run_without_an_adapter_yet_says_so(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(tmp_path / "run", configure())
    assert main([str(run.root)]) == BAD_INPUT
    assert "download has not finished" in capsys.readouterr().err


def test_a_merge_changes_what_the_adapter_updates_and_nothing_else(
    any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path
) -> None:
    for name, with_adapter in (("plain", []), ("merged", [f"--adapter={adapter.path}"])):
        assert export(any_base.path, *with_adapter, "--scheme=bf16", f"--out={tmp_path / name}") == DONE
    plain, merged = tensors(tmp_path / "plain"), tensors(tmp_path / "merged")
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed
    assert all("proj" in name and "visual" not in name for name in changed)


def test_layouts_of_any_origin_export_the_same(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    """Published, saved by transformers 5, and a matrix per expert: the last is what an export itself writes."""
    saved = shutil.copytree(moe_base.path, tmp_path / "saved", ignore=shutil.ignore_patterns(NAME))
    turned = {n: t.mT.contiguous() if "experts" in n else t for n, t in tensors(saved).items()}
    save_file(turned, saved / "model.safetensors", metadata={"format": "pt"})
    assert export(moe_base.path, "--scheme=bf16", f"--out={tmp_path / 'single'}") == DONE
    results = []
    for base in (moe_base.path, saved, tmp_path / "single"):
        assert export(base, f"--out={tmp_path / f'out-{base.name}'}") == DONE
        results.append(tensors(tmp_path / f"out-{base.name}"))
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def test_an_adapter_merged_into_an_export_of_ours_is_that_merged_into_the_base(
    moe_base: BaseSnapshot, tmp_path: Path
) -> None:
    """And rounding the merge is to merge and round."""
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter").path
    (adapter / NAME).unlink()
    single, merged = tmp_path / "single", tmp_path / "merged"
    assert export(moe_base.path, "--scheme=bf16", f"--out={single}") == DONE
    assert export(single, f"--adapter={adapter}", "--scheme=bf16", f"--out={merged}") == DONE
    results = []
    for base, with_adapter in ((moe_base.path, True), (single, True), (merged, False)):
        out = tmp_path / f"out-{base.name}"
        assert export(base, *([f"--adapter={adapter}"] if with_adapter else []), f"--out={out}") == DONE
        results.append({file.name: file.read_bytes() for file in out.glob("*.safetensors")})
    assert results[0] == results[1] == results[2]


def test_what_can_run_code_is_refused(base: Path, refused: Refused) -> None:
    (base / "pytorch_model.bin").write_bytes(b"x")
    assert "pickled files can run code" in refused(base)
    (base / "pytorch_model.bin").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    assert "auto_map" in refused(base)


@pytest.mark.parametrize(("text", "why"), [("[]", "holds list, not an object"), ("{", "not JSON")])
def test_a_config_that_is_none_is_refused(text: str, why: str, base: Path, refused: Refused) -> None:
    (base / "config.json").write_text(text)
    assert why in refused(base)


def test_weights_that_are_quantised_already_are_refused(base: Path, refused: Refused) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    assert "is quantised already" in refused(base, code=FAILED)


def test_what_leads_out_of_the_folder_is_refused(base: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (base / "extra.json").symlink_to(tmp_path / "elsewhere")
    assert "symlinks may lead anywhere" in refused(base)
    (base / "extra.json").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert "leaves the folder" in refused(base)


def test_an_adapter_that_can_run_code_is_refused(base: Path, adapter: Adapter, refused: Refused) -> None:
    (adapter.path / "training_args.bin").write_bytes(b"x")
    assert "pickled files can run code" in refused(base, f"--adapter={adapter.path}")


def test_an_adapter_of_another_base_is_refused(base: Path, adapter: Adapter, refused: Refused) -> None:
    """Whether the base has a manifest or must be hashed."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    manifest = json.loads((base / NAME).read_text())
    (base / NAME).write_text(json.dumps({**manifest, "note": "another"}))
    assert "was trained on base" in refused(base, f"--adapter={adapter.path}", code=FAILED)
    (base / NAME).unlink()
    assert "was trained on base" in refused(base, f"--adapter={adapter.path}", code=FAILED)


def test_an_adapter_that_was_changed_is_refused(base: Path, adapter: Adapter, refused: Refused) -> None:
    file = adapter.path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    assert "adapter_config.json is not the file" in refused(base, f"--adapter={adapter.path}", code=FAILED)


def test_an_adapter_for_what_the_base_lacks_is_refused(
    moe_base: BaseSnapshot, dense_base: BaseSnapshot, tmp_path: Path, refused: Refused
) -> None:
    adapter = store_adapter(adapted_model(dense_base)[1], dense_base, tmp_path / "adapter")
    (adapter.path / NAME).unlink()
    assert "which the base does not have" in refused(moe_base.path, f"--adapter={adapter.path}", code=FAILED)


def test_an_adapter_of_a_base_of_other_widths_is_refused(base: Path, adapter: Adapter, refused: Refused) -> None:
    """Before a thread meets it in the middle of the pass."""
    (adapter.path / NAME).unlink()
    file = adapter.path / "adapter_model.safetensors"
    stored = load_file(file)
    name = next(name for name in stored if "q_proj.lora_A" in name)
    save_file({**stored, name: torch.ones(4, 96)}, file)
    assert "q_proj.weight is [128, 96], and the base has" in refused(base, f"--adapter={adapter.path}", code=FAILED)


def test_an_update_of_a_tied_head_is_refused(base: Path, adapter: Adapter, refused: Refused) -> None:
    """Engines take the embeddings for the head, and would serve the model without it."""
    (adapter.path / NAME).unlink()
    file = adapter.path / "adapter_model.safetensors"
    shape = tensors(base)["lm_head.weight"].shape
    head = {"A": torch.randn(4, shape[1]), "B": 1e-3 * torch.randn(shape[0], 4)}
    names = {f"base_model.model.lm_head.lora_{side}.weight": tensor for side, tensor in head.items()}
    save_file({**load_file(file), **names}, file)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    assert "ties to its embeddings" in refused(base, f"--adapter={adapter.path}", code=FAILED)


def test_an_adapter_that_records_no_base_is_let_pass_aloud(
    any_base: BaseSnapshot, adapter: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (adapter.path / NAME).unlink()
    assert export(any_base.path, f"--adapter={adapter.path}", f"--out={tmp_path / 'out'}") == DONE
    assert "records no base" in caplog.text
    assert read_manifest(tmp_path / "out")["made_from"].keys() == {"base", "adapter"}  # type: ignore[attr-defined]


def test_where_an_export_goes_must_be_free_and_beside_what_is_read(
    any_base: BaseSnapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    shutil.copytree(any_base.path, tmp_path / ".half.partial")
    for arguments, why in (
        ((any_base.path,), "say by --out"),
        ((any_base.path, f"--out={tmp_path / 'mine'}"), "is not empty"),
        ((any_base.path, f"--out={any_base.path / 'int8'}"), "which is only read"),
        ((tmp_path / "nowhere", f"--out={tmp_path / 'out'}"), "no such folder"),
        ((any_base.path, "--adapter-only", f"--out={tmp_path / 'out'}"), "name it by --adapter"),
        ((any_base.path, "--scheme=gptq_int8", f"--out={tmp_path / 'out'}"), "calibrated on training rows"),
        ((tmp_path / ".half.partial", f"--out={tmp_path / 'half'}"), "which is only read"),
        ((any_base.path, "--prompts=-1", f"--out={tmp_path / 'out'}"), "a number from 0 on"),
    ):
        assert main([*map(str, arguments)]) == BAD_INPUT
        assert why in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"
    assert (tmp_path / ".half.partial" / "config.json").is_file()


def test_one_process_at_a_time_exports_to_a_folder(
    any_base: BaseSnapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second would remove what the first is writing."""
    out, codes = tmp_path / "out", []
    prove = making.prove

    def prove_beside(*arguments: Any) -> int:
        codes.append(export(any_base.path, f"--out={out}"))
        return prove(*arguments)

    monkeypatch.setattr(making, "prove", prove_beside)
    assert export(any_base.path, f"--out={out}") == DONE
    assert codes == [BAD_INPUT]
    assert "another process is exporting to" in capsys.readouterr().err
    verify_manifest(out)
    assert export(any_base.path, f"--out={out}") == BAD_INPUT
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_model_of_text_alone_is_exported_without_pictures(base: Path, tmp_path: Path, refused: Refused) -> None:
    """And that is said first, not when all of it was written."""
    config = json.loads((base / "config.json").read_text())
    del config["vision_config"]
    (base / "config.json").write_text(json.dumps(config))
    assert "--prompts 0 exports it unproven" in refused(base)


def test_a_run_is_not_exported_into_what_it_reads(
    any_base: BaseSnapshot,
    data: Dataset,
    adapter: Adapter,
    configure: Configure,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = recorded(Run.create(tmp_path / "run", configure()), any_base, data, adapter)
    assert export(run.root, f"--out={adapter.path / 'int8'}") == BAD_INPUT
    assert "which is only read" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_not_waited_for(base: Path, refused: Refused) -> None:
    assert "add --device cpu" in refused(base, "--device=cuda")


def test_an_interrupted_export_is_continued_by_the_same_command(moe_base: BaseSnapshot, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert export(moe_base.path, f"--out={whole}") == DONE
    interrupt = (
        "import os, signal, sys\n"
        "from training import standalone\n"
        "from training.weights import making\n"
        "making.prove = lambda *args: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(standalone.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", interrupt, str(moe_base.path), f"--out={out}", "--prompts=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert ended.returncode == FAILED, ended.stderr
    assert "the same command goes on" in ended.stderr
    assert not out.exists()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".out.partial").glob("*.safetensors")}
    assert kept
    assert export(moe_base.path, f"--out={out}") == DONE
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")} == kept
    assert (out / NAME).read_bytes() == (whole / NAME).read_bytes()
