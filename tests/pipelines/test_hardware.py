"""A card that cannot do what is asked is refused with the reason, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config_file import load_config
from pipelines.errors import ConfigError
from pipelines.hardware import Hardware, card_objections, objections
from pipelines.schemes import SCHEMES, Name
from pipelines.settings import ROOT


def card(capability: tuple[int, int] | None) -> Hardware:
    return Hardware(name="card", device="cuda", memory_gib=48, capability=capability)


INT8_PRODUCTS: tuple[Name, ...] = ("int8_w8a8", "gptq_int8", "smoothquant_int8")


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)])
def test_ampere_to_hopper_do_everything(capability: tuple[int, int]) -> None:
    assert len(SCHEMES) >= 7
    assert [name for name, scheme in SCHEMES.items() if objections(card(capability), scheme)] == []


@pytest.mark.parametrize("capability", [(10, 0), (12, 0), (12, 1)])
def test_blackwell_multiplies_no_int8(capability: tuple[int, int]) -> None:
    refused = {name: objections(card(capability), scheme) for name, scheme in SCHEMES.items()}
    assert tuple(name for name, reasons in refused.items() if reasons) == INT8_PRODUCTS
    for name in INT8_PRODUCTS:
        (reason,) = refused[name]
        assert f"no kernels for {name}" in reason
        assert "set export.scheme to int8_w8a16, int4_w4a16 or bf16" in reason


def test_before_ampere_there_is_no_bf16() -> None:
    for name in ("bf16", "int8_w8a16", "int4_w4a16", "int8_w8a8"):
        (reason,) = card_objections("Tesla T4", (7, 5), SCHEMES[name])
        assert reason.startswith("Tesla T4 has compute capability 7.5, and bf16")


def test_before_turing_there_is_no_int8_either() -> None:
    _, reason = card_objections("Tesla V100", (7, 0), SCHEMES["int8_w8a8"])
    assert reason.startswith("Tesla V100 has compute capability 7.0, and vLLM multiplies INT8 from 7.5")


def test_a_card_of_unknown_capability_is_refused() -> None:
    (reason,) = objections(card(None), SCHEMES["bf16"])
    assert "names no capability" in reason


def test_a_cpu_has_no_kernel_for_int8_weights_alone() -> None:
    cpu = Hardware(name="laptop", device="cpu", memory_gib=8)
    refused = {name: reasons for name, scheme in SCHEMES.items() if (reasons := objections(cpu, scheme))}
    assert list(refused) == ["int8_w8a16"]
    assert refused["int8_w8a16"][0].startswith("laptop is a CPU, for which vLLM has no kernels for int8_w8a16")


def test_a_config_for_a_card_that_cannot_is_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    raw["hardware"] = "rtx_pro_5000_48gb"
    path = tmp_path / "blackwell.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"rtx_pro_5000_48gb has compute capability 12\.0"):
        load_config(path)
    assert load_config(path, ("export.scheme=bf16",)).hardware.capability == (12, 0)


def test_a_profile_may_allow_less_than_the_card_has() -> None:
    capped = load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", ("hardware=h200_capped_48gb",)).hardware
    assert capped.share == pytest.approx(48 / 139.8)
    assert card((8, 9)).share == 1
    with pytest.raises(ValueError, match=r"memory_gib 48\.0 exceeds card_gib 40\.0"):
        Hardware(name="card", device="cuda", memory_gib=48, card_gib=40, capability=(8, 9))
