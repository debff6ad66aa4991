"""What may be used as a base model, and what each refusal says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.artifacts import BaseSnapshot
from pipelines.errors import SourceRefused
from pipelines.system.manifest import verify_manifest
from tests.training.parts import Configure
from tests.training.sources.models import COMMIT, HF, HubSite, model
from tests.training.sources.site import serving
from training import download as module
from training.builtin.recipe import Recipe
from training.download import download

QUICK = Recipe("moe", threads=1, steps=1, batch_size=2, pictures={"printed": 2})


@pytest.fixture
def local(moe_base: BaseSnapshot, tmp_path: Path) -> Path:
    """A copy of a published checkpoint."""
    return shutil.copytree(moe_base.path, tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))


def _index(name: str) -> Callable[[Path], object]:
    weights = json.dumps({"weight_map": {"a": name}})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(weights)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / "pytorch_model.bin").touch(), "pytorch_model.bin: pickled files can run code"),
    "pickle below": (lambda f: ((f / "x").mkdir(), (f / "x" / "a.PTH").touch()), "a.PTH: pickled"),
    "code": (lambda f: (f / "modeling.py").touch(), "modeling.py: a model brings no code"),
    "auto_map": (
        lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {}}'),
        "tokenizer_config.json: `auto_map`",
    ),
    "symlink": (lambda f: (f / "x.json").symlink_to("/etc/hostname"), "x.json: symlinks"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: not there"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no *.safetensors"),
    "missing shard": (_index("model-2.safetensors"), "model-2.safetensors: named in the index and not there"),
    "shard outside": (_index("../model.safetensors"), "leaves the folder"),
}


@pytest.mark.parametrize(("spoil", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_an_unsafe_or_incomplete_folder_is_refused_by_name(
    spoil: Callable[[Path], object], message: str, local: Path, tmp_path: Path, configure: Configure
) -> None:
    spoil(local)
    with pytest.raises(SourceRefused) as refused:
        download(configure(f"model.source=file://{local}", "model.fallback=null"), tmp_path)
    assert message in str(refused.value)


def test_a_local_model_is_used_where_it_lies(local: Path, tmp_path: Path, configure: Configure) -> None:
    before = sorted(local.iterdir())
    folder = tmp_path / "step"
    folder.mkdir()
    snapshot = download(configure(f"model.source=file://{local}", "model.fallback=null"), folder)
    assert snapshot.path == local
    assert sorted(local.iterdir()) == before
    assert (folder / "manifest.json").is_file()
    assert snapshot.architecture == "Qwen3VLMoeForConditionalGeneration"


def test_the_digest_names_the_bytes(local: Path, tmp_path: Path, configure: Configure) -> None:
    config = configure(f"model.source=file://{local}", "model.fallback=null")
    first, again = download(config, tmp_path), download(config, tmp_path)
    (local / "generation_config.json").write_text("{}")
    assert first.digest == again.digest != download(config, tmp_path).digest


@pytest.mark.parametrize("source", ["file:///no/such/folder", "builtin://unknown"])
def test_an_unknown_source_is_refused(source: str, tmp_path: Path, configure: Configure) -> None:
    with pytest.raises(SourceRefused, match="no such"):
        download(configure(f"model.source={source}", "model.fallback=null"), tmp_path)


@pytest.fixture
def quick_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    dense = Recipe("dense", threads=1, steps=1, batch_size=2, pictures={"printed": 2})
    monkeypatch.setattr(module, "RECIPES", {"tiny-qwen3-vl-moe": QUICK, "tiny-qwen3-vl": dense})


@pytest.mark.usefixtures("quick_recipes")
def test_a_builtin_model_is_pinned_by_its_recipe(tmp_path: Path, configure: Configure) -> None:
    snapshot = download(configure("model.fallback=null"), tmp_path)
    assert snapshot.revision == QUICK.digest()[:40]
    assert snapshot.path.is_relative_to(tmp_path / "cache")


@pytest.mark.usefixtures("quick_recipes")
def test_the_fallback_is_used_and_said_where_no_kernel_is(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "local_int8_moe_kernel", lambda: None)
    assert download(configure(), tmp_path).source == "builtin://tiny-qwen3-vl"
    assert [r.levelname for r in caplog.records if "is used instead of" in r.message] == ["WARNING"]


@pytest.mark.usefixtures("quick_recipes")
@pytest.mark.parametrize(("kernel", "override"), [("zentorch", "lora.rank=8"), (None, "export.scheme=bf16")])
def test_the_fallback_is_not_used_where_the_model_can_be_served(
    kernel: str | None, override: str, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "local_int8_moe_kernel", lambda: kernel)
    assert download(configure(override), tmp_path).source == "builtin://tiny-qwen3-vl-moe"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubSite]:
    monkeypatch.setenv("VLMOPS_CACHE_DIR", str(tmp_path / "cache"))
    with serving() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        yield HubSite(site, model())


def test_a_model_of_a_hub_is_pinned_by_its_commit_and_its_bytes(
    hub: HubSite, tmp_path: Path, configure: Configure
) -> None:
    config = configure(f"model.source={HF}", "model.fallback=null")
    snapshot = download(config, tmp_path)
    verify_manifest(snapshot.path, snapshot.digest)
    assert (snapshot.source, snapshot.revision) == (str(HF), COMMIT)
    assert snapshot.architecture == "Qwen3VLMoeForConditionalGeneration"
    assert snapshot.path.is_relative_to(tmp_path / "cache")
    assert download(config, tmp_path) == snapshot


def test_the_weights_of_a_mixture_that_cannot_be_served_are_not_fetched(
    hub: HubSite, local: Path, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "local_int8_moe_kernel", lambda: None)
    config = configure(f"model.source={HF}", f"model.fallback=file://{local}")
    assert download(config, tmp_path).source == f"file://{local}"
    assert hub.site.asked("config.json")
    assert not hub.site.asked(".safetensors")
