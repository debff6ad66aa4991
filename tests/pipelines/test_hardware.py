"""A card that cannot do what is asked is refused with the reason, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config_file import load_config
from pipelines.errors import ConfigError
from pipelines.hardware import Hardware, card_objections, objections
from pipelines.settings import ROOT


def card(capability: tuple[int, int] | None) -> Hardware:
    return Hardware(name="card", device="cuda", memory_gib=48, capability=capability)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)])
def test_ampere_to_hopper_do_everything(capability: tuple[int, int]) -> None:
    assert objections(card(capability), "int8_w8a8") == []


@pytest.mark.parametrize("capability", [(10, 0), (12, 0), (12, 1)])
def test_blackwell_has_no_int8(capability: tuple[int, int]) -> None:
    (reason,) = objections(card(capability), "int8_w8a8")
    assert "no INT8 kernels" in reason
    assert "set export.scheme to bf16" in reason
    assert objections(card(capability), "bf16") == []


def test_before_ampere_there_is_no_bf16() -> None:
    (reason,) = card_objections("Tesla T4", (7, 5), "bf16")
    assert reason.startswith("Tesla T4 has compute capability 7.5, and bf16")


def test_a_card_of_unknown_capability_is_refused() -> None:
    (reason,) = objections(card(None), "bf16")
    assert "names no capability" in reason


def test_a_cpu_has_none() -> None:
    assert objections(Hardware(name="cpu", device="cpu", memory_gib=8), "int8_w8a8") == []


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
