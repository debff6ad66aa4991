"""Parameters are counted exactly: from headers where there are any, else from the published shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.budget.base import SHAPES, Base, find_base, published_name, read_base
from pipelines.budget.parameters import Parameters, count_by_shape, count_in_files
from pipelines.budget.shape import read_shape
from pipelines.errors import BadInput
from pipelines.settings import Settings
from tests.pipelines.budget.checkpoint import QWEN, TINY, write_checkpoint, write_header

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_real_model_has_31_billion_parameters(base: Base) -> None:
    assert base.parameters == Parameters(
        experts=48 * 603_979_776,
        attention=48 * 18_874_368,
        embedding=311_164_928,
        head=311_164_928,
        vision=538_631_408,
        router=48 * 262_144,
        norms=48 * 4_352 + 2_048,
    )
    assert base.parameters.total == 31_070_754_032


def test_headers_are_counted_by_part(tmp_path: Path) -> None:
    assert count_in_files(write_checkpoint(tmp_path)) == Parameters(
        experts=6 * 128 * 192 + 6 * 96 * 128,
        attention=128 * 128,
        embedding=448 * 128,
        head=448 * 128,
        vision=96 + 384,
        router=6 * 128,
        norms=128 + 32 + 128,
    )


def test_a_dense_model_has_an_mlp_and_no_experts() -> None:
    dense = json.loads((SHAPES / "builtin" / "tiny-qwen3-vl.json").read_text())
    parameters = count_by_shape(read_shape(dense, "dense"))
    assert (parameters.experts, parameters.router) == (0, 0)
    assert parameters.mlp == 3 * 3 * 128 * 576


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (f"hf://Qwen/Qwen3-VL-30B-A3B-Instruct@{COMMIT}", QWEN),
        (f"modelscope://Qwen/Qwen3-VL-30B-A3B-Instruct@{COMMIT}", QWEN),
        ("file:///models/Qwen/Qwen3-VL-30B-A3B-Instruct", QWEN),
        ("builtin://tiny-qwen3-vl-moe", TINY),
    ],
)
def test_a_model_that_is_not_here_is_planned_by_its_published_shape(settings: Settings, source: str, name: str) -> None:
    assert published_name(source) == name
    found = find_base(source, settings)
    assert found.parameters == count_by_shape(found.shape)
    assert "no weights on this machine" in found.seen


def test_files_win_over_the_published_shape(settings: Settings, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Qwen" / "Qwen3-VL-30B-A3B-Instruct")
    found = find_base(f"file://{folder}", settings)
    assert found.parameters.total < 1e6
    assert str(folder) in found.seen


def test_a_download_is_found_by_its_commit(settings: Settings) -> None:
    folder = write_checkpoint(settings.cache / "bases" / f"hf-Qwen--Qwen3-VL-30B-A3B-Instruct@{COMMIT}")
    assert str(folder) in find_base(f"hf://{QWEN}@{COMMIT}", settings).seen
    assert "published" in find_base(f"hf://{QWEN}@{COMMIT[::-1]}", settings).seen


def test_an_unknown_model_says_how_it_can_be_planned(settings: Settings) -> None:
    with pytest.raises(BadInput, match=r"hf://acme/eyes@.*: not on this machine.*acme/eyes\.json, or let `vlmops run`"):
        find_base(f"hf://acme/eyes@{COMMIT}", settings)


def test_a_tensor_of_no_known_part_is_named(tmp_path: Path) -> None:
    write_header(write_checkpoint(tmp_path) / "more.safetensors", {"model.audio.conv.weight": (3, 3)})
    with pytest.raises(BadInput, match=r"more\.safetensors: model\.audio\.conv\.weight: a tensor of no known part"):
        read_base(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\x05\0\0\0\0\0\0\0[1,2]", b"\xff" * 64, b"\x09\0\0\0\0\0\0\0{'a': 1}"]
)
def test_a_file_without_a_header_is_named(tmp_path: Path, content: bytes) -> None:
    (write_checkpoint(tmp_path) / "cut.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"cut\.safetensors: .*download the model again"):
        read_base(tmp_path)


@pytest.mark.parametrize("content", [None, "", '{"text_config": '])
def test_a_folder_without_a_whole_config_is_named(tmp_path: Path, content: str | None) -> None:
    config = write_checkpoint(tmp_path) / "config.json"
    config.unlink() if content is None else config.write_text(content)
    with pytest.raises(BadInput, match=r"config\.json: no model's config .*download the model again"):
        read_base(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    for file in write_checkpoint(tmp_path).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BadInput, match=r"no \*\.safetensors in it"):
        read_base(tmp_path)


def test_a_config_of_another_kind_of_model_is_refused() -> None:
    published = json.loads((SHAPES / f"{QWEN}.json").read_text())
    with pytest.raises(BadInput, match=r"x\.json: no 'vision_config' in it"):
        read_shape({"text_config": published["text_config"]}, "x.json")
    published["text_config"]["mlp_only_layers"] = [0]
    with pytest.raises(BadInput, match=r"x\.json: some layers have experts"):
        read_shape(published, "x.json")
