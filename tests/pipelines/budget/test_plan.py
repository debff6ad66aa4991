"""A plan says what fits, and what it says would fit does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipelines.budget.base import Base
from pipelines.budget.largest import largest_rank, largest_tokens
from pipelines.budget.plan import make_plan, require_training_fit, serving_side, training_side
from pipelines.budget.training import training_demand
from pipelines.cli import main
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import BAD_INPUT, DONE, MachineUnfit
from pipelines.settings import ROOT, Settings
from tests.pipelines.budget.checkpoint import write_checkpoint
from tests.pipelines.budget.variants import changed

QWEN_CONFIG = ROOT / "configs" / "qwen3_vl_30b.yaml"
CARDS = ("a6000_48gb", "l40s_48gb", "rtx6000ada_48gb", "h200_capped_48gb")


def small_config(folder: Path, memory_gib: float) -> str:
    raw = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    raw["hardware"] = {"name": "small", "device": "cpu", "memory_gib": memory_gib}
    (folder / "small.yaml").write_text(yaml.safe_dump(raw))
    return str(folder / "small.yaml")


@pytest.mark.parametrize("card", CARDS)
def test_the_real_model_trains_and_serves_on_48_gb(base: Base, card: str) -> None:
    config = load_config(QWEN_CONFIG, (f"hardware={card}",))
    assert training_side(config, base).demand.verdict == "fits"
    assert serving_side(config, base).demand.verdict == "fits"


@pytest.mark.parametrize("card", CARDS)
def test_the_base_is_compared_with_in_the_scheme_that_fits(
    card: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(QWEN_CONFIG), "--set", f"hardware={card}"]) == DONE
    out = capsys.readouterr().out
    assert "serving and evaluation, candidate or base, int8_w8a8" in out
    assert "does not fit" not in out


def test_a_merged_model_that_is_kept_is_part_of_the_plan(qwen: Config, base: Base) -> None:
    """`evaluate` serves it in bf16; to find out after hours of training would be late."""
    kept = changed(qwen, "export", keep_merged=True)
    *_, merged = make_plan(kept, base).sides
    assert "merged" in merged.demand.name
    assert merged.demand.verdict == "does not fit"
    assert merged.lower == ("set export.keep_merged to false",)
    assert make_plan(qwen, base).fits
    assert make_plan(changed(kept, "hardware", memory_gib=139.8), base).fits


def test_the_largest_settings_fit_and_the_next_ones_do_not(qwen: Config, base: Base) -> None:
    tokens, rank = largest_tokens(qwen, base), largest_rank(qwen, base)
    assert tokens is not None
    assert rank is not None
    assert training_demand(qwen, base, tokens=tokens).verdict == "fits"
    assert training_demand(qwen, base, tokens=tokens + 256).verdict != "fits"
    assert training_demand(qwen, base, rank=rank).verdict == "fits"
    assert training_demand(qwen, base, rank=rank + 1).verdict != "fits"
    assert training_side(qwen, base).room == (f"train.tokens_per_batch up to {tokens:,}", f"lora.rank up to {rank}")


@pytest.mark.parametrize(
    ("memory_gib", "tokens_per_batch", "ways"),
    [
        (32, 24_576, ("train.tokens_per_batch from 24,576", "lora.rank from 16", "lora.targets to attention")),
        (24, 8192, ("to 4,096, and lower lora.rank from 16", "to 4,096, and set lora.targets to attention")),
        (17, 8192, ("no setting is small enough",)),
    ],
)
def test_what_does_not_fit_says_what_would(
    qwen: Config, base: Base, memory_gib: float, tokens_per_batch: int, ways: tuple[str, ...]
) -> None:
    config = changed(changed(qwen, "hardware", memory_gib=memory_gib), "train", tokens_per_batch=tokens_per_batch)
    side = training_side(config, base)
    assert side.demand.verdict == "does not fit"
    assert len(side.lower) == len(ways)
    assert all(way in text for way, text in zip(ways, side.lower, strict=True))
    for text in side.lower:
        lowered = config
        for name, value in re.findall(r"(tokens_per_batch|rank)(?: from [\d,]+)? to (\d[\d,]*)", text):
            lowered = changed(lowered, "lora" if name == "rank" else "train", **{name: int(value.replace(",", ""))})
        if "targets to attention" in text:
            lowered = changed(lowered, "lora", targets="attention")
        assert (training_demand(lowered, base).verdict == "fits") is (lowered != config)


def test_rows_too_long_for_the_card_are_said_to_be(qwen: Config, base: Base) -> None:
    config = changed(changed(qwen, "hardware", memory_gib=26.8), "data", max_tokens=8192)
    tokens = largest_tokens(config, base)
    assert tokens is not None
    assert tokens < config.data.max_tokens
    assert f"lower data.max_tokens and train.tokens_per_batch to {tokens:,}" in training_side(config, base).lower[0]


def test_serving_that_does_not_fit_says_what_would(qwen: Config, base: Base) -> None:
    narrow = changed(qwen, "serving", gpu_memory_utilization=0.68)
    side = serving_side(narrow, base)
    assert side.demand.verdict == "does not fit"
    share, length, scheme = side.lower
    assert scheme == "set export.scheme to int4_w4a16"
    assert serving_side(
        changed(narrow, "serving", gpu_memory_utilization=float(share.rpartition(" ")[2])), base
    ).demand.verdict == "fits"  # fmt: skip
    shorter = changed(narrow, "serving", max_model_len=int(length.rpartition(" ")[2].replace(",", "")))
    assert serving_side(shorter, base).demand.verdict == "tight"


def test_bf16_that_does_not_fit_is_told_of_int8(qwen: Config, base: Base) -> None:
    bf16 = changed(qwen, "export", scheme="bf16")
    assert serving_side(bf16, base).lower == ("set export.scheme to int8_w8a8",)
    blackwell = changed(bf16, "hardware", capability=(12, 0))
    assert serving_side(blackwell, base).lower == ("set export.scheme to int8_w8a16",)
    small = changed(qwen, "hardware", memory_gib=30)
    assert "set export.scheme to int4_w4a16" in serving_side(small, base).lower
    smallest = changed(changed(qwen, "export", scheme="int4_w4a16"), "hardware", memory_gib=16)
    assert "no setting is small enough; it takes a device that allows" in serving_side(smallest, base).lower[0]


def test_a_base_that_cannot_be_trained_here_is_not_loaded(smoke: Config, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    require_training_fit(smoke, folder)
    with pytest.raises(MachineUnfit, match=r"training needs about 0\.\d GiB, and cpu allows 0\.5 GiB: no setting"):
        require_training_fit(changed(smoke, "hardware", memory_gib=0.5), folder)


def test_the_command_says_what_fits(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / "configs" / "smoke.yaml")]) == DONE
    out = capsys.readouterr().out
    assert "LoRA gradients" in out
    assert "KV cache" in out
    assert "from the published shape; no weights on this machine" in out
    assert "there is room for train.tokens_per_batch up to 4,096, a whole step" in out
    assert not settings.home.exists()


def test_the_command_ends_with_bad_input_where_it_does_not_fit(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", small_config(tmp_path, 0.5)]) == BAD_INPUT
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "to make it fit: " in out


def test_the_command_refuses_a_card_that_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(QWEN_CONFIG), "--set", "hardware=rtx_pro_5000_48gb"]) == BAD_INPUT
    assert "no kernels for int8_w8a8" in capsys.readouterr().err
