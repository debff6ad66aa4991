"""The export step: bit for bit PEFT's merge, INT8 of exactly that, refused where it must be, whole or not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from pipelines.artifacts import Adapter, BaseSnapshot, Dataset
from pipelines.errors import ExportRejected, MachineUnfit
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.system.manifest import ManifestMismatch, read_manifest, verify_manifest
from tests.training.parts import Configure, adapted_model, run_until_killed, store_adapter
from training.adapter import LoraShape, save_adapter
from training.export import export
from training.int8 import is_quantized, scale_name
from training.model import attach_lora, load_quantized
from training.provenance import open_update
from training.weights import stream
from training.weights.checkpoint import open_checkpoint
from training.weights.making import make


@pytest.fixture(autouse=True)
def _machine(settings: Settings) -> None:
    """A cache of our own, for the exported base."""


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _peft_merge(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Stock PEFT's merge in fp32, rounded to bf16, with experts unfused."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return unfused(PeftModel.from_pretrained(model, adapter).merge_and_unload().to(torch.bfloat16))


def unfused(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors with a matrix for each projection of each expert."""
    wanted = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for expert, matrix in enumerate(tensor):
                for part, half in zip(("gate", "up"), matrix.chunk(2), strict=True):
                    wanted[name.replace("gate_up_proj", f"{expert}.{part}_proj.weight")] = half
        elif name.endswith("experts.down_proj"):
            for expert, matrix in enumerate(tensor):
                wanted[name.replace("down_proj", f"{expert}.down_proj.weight")] = matrix
        else:
            wanted[name] = tensor
    return wanted


def test_the_merge_is_pefts_bit_for_bit_and_int8_is_its_rounding(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = export(configure(), tmp_path, any_base, data, adapter)
    assert model.merged_path
    merged, wanted = _tensors(model.merged_path), _peft_merge(any_base.path, adapter.path)
    assert merged.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(merged[name], wanted[name])]
    int8 = _tensors(model.path)
    quantized = [name for name in merged if is_quantized(name, tuple(merged[name].shape))]
    assert len(quantized) == model.quantized_tensors == (66 if "Moe" in any_base.architecture else 21)
    for name in quantized:
        step = int8[scale_name(name)].double()
        reference = (merged[name].double() / step).round().clamp(-128, 127)
        assert int((int8[name].double() - reference).abs().max()) <= 1
        assert (int8[name].double() != reference).double().mean() < 0.001
    assert all(torch.equal(int8[name], merged[name]) for name in merged if name not in quantized)


def test_an_adapter_of_attention_alone_is_merged_bit_for_bit(
    any_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = load_quantized(any_base.path, torch.float32, "cpu")
    adapted = attach_lora(model, "attention", 4, 8.0, seed=1)
    with torch.no_grad():
        for module in adapted.values():
            module.b.normal_(std=0.02)
    digest = save_adapter(adapted, LoraShape("attention", 4, 8.0), any_base.digest, tmp_path / "adapter")
    checkpoint = open_checkpoint(any_base.path, any_base.digest)
    update = open_update(tmp_path / "adapter", digest, checkpoint)
    make(stream.Pass(checkpoint, update, {"merged": SCHEMES["bf16"]}, 1e9), tmp_path, None, {}).seal()
    merged, wanted = _tensors(tmp_path / "merged"), _peft_merge(any_base.path, tmp_path / "adapter")
    assert merged.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(merged[name], wanted[name])]
    published = unfused(AutoModelForImageTextToText.from_pretrained(any_base.path, dtype=torch.bfloat16))
    changed = {name for name in published if not torch.equal(merged[name], published[name])}
    assert changed
    assert all("self_attn" in name for name in changed)


def test_the_figures_and_digests_are_told(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = export(configure(), tmp_path, any_base, data, adapter)
    assert 0.001 < model.relative_error < 0.01
    assert model.delta_norm > 0.01
    assert model.merged_bytes
    assert model.size_bytes < 0.85 * model.merged_bytes
    verify_manifest(model.path, model.digest)
    assert read_manifest(model.path)["made_from"] == {"base": any_base.digest, "adapter": adapter.digest}
    assert not list(tmp_path.glob(".*.partial"))


def test_config_and_processor_travel_with_the_limits_of_training(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = export(configure("images.max_pixels=16384"), tmp_path, any_base, data, adapter)
    assert AutoProcessor.from_pretrained(model.path).image_processor.size["longest_edge"] == 16384
    config = json.loads((model.path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"
    assert (model.path / "generation_config.json").is_file()


def test_bf16_is_a_merge_only(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = export(configure("export.scheme=bf16"), tmp_path, any_base, data, adapter)
    assert model.merged_path is None
    assert model.quantized_tensors == 0
    assert "quantization_config" not in json.loads((model.path / "config.json").read_text())
    assert {tensor.dtype for tensor in _tensors(model.path).values()} == {torch.bfloat16}


def test_shards_are_small_and_indexed(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    model = export(configure("export.max_shard_gb=0.0005"), tmp_path, any_base, data, adapter)
    index = json.loads((model.path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 4
    assert index["weight_map"].keys() == _tensors(model.path).keys()


def test_a_base_saved_by_transformers_exports_the_same(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    _, adapted = adapted_model(moe_base)
    adapter = store_adapter(adapted, moe_base, tmp_path / "adapter")
    first = export(configure(), tmp_path / "a", moe_base, data, adapter)
    resaved = shutil.copytree(moe_base.path, tmp_path / "resaved")
    tensors = load_file(resaved / "model.safetensors")
    turned = {n: t.transpose(1, 2).contiguous() if "experts" in n else t for n, t in tensors.items()}
    save_file(turned, resaved / "model.safetensors")
    second = export(configure(), tmp_path / "b", moe_base.model_copy(update={"path": resaved}), data, adapter)
    ours, theirs = _tensors(first.path), _tensors(second.path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_of_another_base_is_refused(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ExportRejected, match="trained on base"):
        export(configure(), tmp_path, any_base.model_copy(update={"digest": "f" * 64}), data, adapter)


def test_an_adapter_that_was_changed_is_refused(
    any_base: BaseSnapshot, adapter: Adapter, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    file = adapter.path / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(ManifestMismatch, match="adapter_config"):
        export(configure(), tmp_path, any_base, data, adapter)


def test_an_update_of_a_tensor_that_the_base_lacks_is_refused(
    moe_base: BaseSnapshot, dense_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    _, adapted = adapted_model(dense_base)
    adapter = store_adapter(adapted, dense_base, tmp_path / "adapter").model_copy(
        update={"base_digest": moe_base.digest}
    )
    with pytest.raises(ExportRejected, match="which the base does not have"):
        export(configure(), tmp_path, moe_base, data, adapter)


def test_a_model_that_predicts_otherwise_gets_no_manifest(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    with pytest.raises(ExportRejected, match="does not predict what the base with its adapter does"):
        export(configure("export.parity.max_kl=1e-12"), tmp_path / "step", moe_base, data, adapter)
    assert not (tmp_path / "step" / "model").exists()
    assert not list((tmp_path / "step").rglob("manifest.json"))


def test_an_export_that_compares_nothing_says_so(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    model = export(configure("export.parity.prompts=0"), tmp_path / "step", moe_base, data, adapter)
    assert model.parity is None
    assert "nothing tells whether the exported model predicts what was trained" in caplog.text


@pytest.mark.parametrize(("place", "least_bytes"), [("bases-exported", 2e6), ("step", 5e6)])
def test_a_full_disk_is_said_before_anything_is_written_there(
    place: str,
    least_bytes: float,
    any_base: BaseSnapshot,
    adapter: Adapter,
    configure: Configure,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = []

    def refuse(folder: Path, need: int, purpose: str) -> None:
        if folder.name == place:
            needs.append(need)
            raise MachineUnfit(f"{purpose} {folder}")

    monkeypatch.setattr(stream, "require_disk", refuse)
    with pytest.raises(MachineUnfit, match=place):
        export(configure(), tmp_path / "step", any_base, data, adapter)
    assert needs[0] > least_bytes
    assert not list(tmp_path.rglob(f"{place}/.*.partial/*.safetensors*"))


DEATHS = {
    "in the first file": ("training.weights.writer._Shard.write", 3),
    "in a later file": ("training.weights.writer._Shard.write", 150),
    "before the check of a model": ("training.weights.released.verify_release", 2),
    "while it is proven": ("training.weights.making.prove", 1),
    "while predictions are compared": ("training.parity.measure.measure_parity", 1),
    "between two manifests": ("training.weights.released.write_manifest", 2),
}


@pytest.mark.parametrize(("where", "at"), DEATHS.values(), ids=DEATHS)
def test_a_killed_step_leaves_nothing_that_looks_whole_and_goes_on_where_it_was(
    where: str, at: int, moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    config = configure("export.max_shard_gb=0.0005")
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    whole = export(config, tmp_path / "whole", moe_base, data, adapter)  # and with it, the exported base
    folder = tmp_path / "killed"
    run_until_killed(where, at, "export", config, folder, moe_base, data, adapter)
    assert not (folder / "merged").exists()
    finished = _times(folder)
    again = export(config, folder, moe_base, data, adapter)
    assert (again.digest, again.merged_digest) == (whole.digest, whole.merged_digest)
    assert (again.relative_error, again.delta_norm) == (whole.relative_error, whole.delta_norm)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    if where.startswith("training.weights.writer"):
        assert (len(finished) > 0) == (at > 100)
        newest = max((file for _, file in finished), default="")  # has its name, and may not be noted yet
        finished = {(model, file): time for (model, file), time in finished.items() if file < newest}
    if "manifest" not in where:
        assert finished.items() <= _times(folder).items()


def _times(folder: Path) -> dict[tuple[str, str], int]:
    """Of every file of weights that has its name, in a finished model or an unfinished one. Inodes are used again."""
    return {
        (path.parent.name.strip(".").removesuffix(".partial"), path.name): path.stat().st_mtime_ns
        for path in folder.glob("*/model-*.safetensors")
    }


@pytest.mark.parametrize("changed", ["adapter", "scheme", "size of a file"])
def test_what_was_begun_otherwise_is_not_continued(
    changed: str, moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    _, adapted = adapted_model(moe_base)
    adapter = store_adapter(adapted, moe_base, tmp_path / "adapter")
    run_until_killed(
        "training.parity.measure.measure_parity", 1, "export", configure(), tmp_path / "x", moe_base, data, adapter
    )
    config = configure(
        *{"scheme": ["export.scheme=bf16"], "size of a file": ["export.max_shard_gb=0.001"]}.get(changed, [])
    )
    if changed == "adapter":
        with torch.no_grad():
            next(iter(adapted.values())).b.mul_(2)
        adapter = store_adapter(adapted, moe_base, tmp_path / "other")
    again = export(config, tmp_path / "x", moe_base, data, adapter)
    assert again.digest == export(config, tmp_path / "y", moe_base, data, adapter).digest


def test_a_line_of_the_journal_that_is_cut_costs_that_file_alone(
    moe_base: BaseSnapshot, configure: Configure, data: Dataset, tmp_path: Path
) -> None:
    config = configure("export.max_shard_gb=0.0005")
    adapter = store_adapter(adapted_model(moe_base)[1], moe_base, tmp_path / "adapter")
    run_until_killed(
        "training.parity.measure.measure_parity", 1, "export", config, tmp_path / "x", moe_base, data, adapter
    )
    [journal] = (tmp_path / "x").glob(".*.jsonl")
    journal.write_text(journal.read_text()[:-20])
    before = _times(tmp_path / "x")
    export(config, tmp_path / "x", moe_base, data, adapter)
    assert sum(before[key] != time for key, time in _times(tmp_path / "x").items()) == 2  # model and merged


FULL = """
import sys
from pathlib import Path
from pipelines.errors import MachineUnfit
from pipelines.schemes import SCHEMES
from training.weights import stream
from training.weights.checkpoint import open_checkpoint
stream.require_disk = lambda *asked: None  # as if another process filled the disk meanwhile
try:
    stream.Pass(open_checkpoint(Path(sys.argv[1]), "x"), None, {"model": SCHEMES["bf16"]}, 5e5).run(Path(sys.argv[2]))
except MachineUnfit as error:
    sys.exit(f"refused: {error}; left {sorted(path.name for path in Path(sys.argv[2]).rglob('*'))}")
"""


def test_a_disk_that_fills_up_in_the_middle_leaves_no_manifest_and_what_is_whole(
    moe_base: BaseSnapshot, tmp_path: Path
) -> None:
    mount = f'mount -t tmpfs -o size=2m none {tmp_path} && exec {sys.executable} -c "$0" {moe_base.path} {tmp_path}/x'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()[-200:]}")
    assert "refused: " in done.stderr, done.stderr[-2000:]
    assert "the disk is full; free some and run it again" in done.stderr
    assert "'model-00001-of" in done.stderr
    assert "manifest.json" not in done.stderr
