"""Every shipped config loads; a wrong one is refused with all its problems at once, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.errors import ConfigError
from pipelines.settings import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PROFILES = sorted((ROOT / "configs" / "hardware").glob("*.yaml"))


def write(folder: Path, **changes: object) -> Path:
    raw = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            raw[section][field] = value
        else:
            raw[section] = value
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_configs_are_found() -> None:
    assert len(CONFIGS) >= 2
    assert len(PROFILES) >= 6


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profile_loads(path: Path, tmp_path: Path) -> None:
    # In bf16, which every card can do; INT8 is refused on one of them.
    path_of = write(tmp_path, hardware=path.stem, export__scheme="bf16")
    assert load_config(path_of).hardware.name == path.stem


def test_every_field_is_documented() -> None:
    def undocumented(model: type, prefix: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                missing += undocumented(inner, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)
        return missing

    assert undocumented(Config, "") == []


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, lora__rank=0, train__stepz=5, export__scheme="int7", serving__name="Not A Name")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    text = str(error.value)
    assert "4 problem(s)" in text
    assert str(path) in text
    assert "lora.rank = 0: Input should be greater than or equal to 1" in text
    assert "train.stepz = 5: Extra inputs are not permitted" in text
    assert "export.scheme = 'int7': Input should be 'int8_w8a8', 'int8_w8a16', 'int4_w4a16', 'bf16'" in text
    assert "serving.name" in text


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    del raw["registry"]
    path = tmp_path / "less.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"registry: Field required"):
        load_config(path)


def test_a_scheme_that_nothing_here_serves_is_refused_with_the_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no kernels for int8_w8a16; set export\.scheme to int8_w8a8"):
        load_config(write(tmp_path, export__scheme="int8_w8a16"))


def test_groups_are_of_a_size_that_engines_know(tmp_path: Path) -> None:
    export = load_config(write(tmp_path, export={"scheme": "int4_w4a16", "group_size": 32})).export
    assert (export.stored.bits, export.stored.group) == (4, 32)
    assert load_config(write(tmp_path, export={"group_size": 32})).export.stored.group is None
    with pytest.raises(ConfigError, match=r"export\.group_size = 48"):
        load_config(write(tmp_path, export__group_size=48))


def test_a_cpu_exports_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export\.device cuda needs hardware\.device cuda"):
        load_config(write(tmp_path, export__device="cuda"))


def test_a_requirement_tolerates_a_loss_or_wants_a_gain(tmp_path: Path) -> None:
    wanted = load_config(write(tmp_path, gate={"requirements": [{"slice": "digits", "superiority": True}]})).gate
    assert wanted.requirements[0].threshold == 0
    for requirement in ({"slice": "digits"}, {"slice": "digits", "superiority": True, "margin": 0.02}):
        with pytest.raises(ConfigError, match=r"gate\.requirements\.0 = .*digits: .*(superiority|leave out)"):
            load_config(write(tmp_path, gate={"requirements": [requirement]}))


def test_pixel_limits_must_be_ordered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_pixels 9000 exceeds max_pixels 8000"):
        load_config(write(tmp_path, images={"min_pixels": 9000, "max_pixels": 8000}))


def test_an_answer_must_leave_room_for_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.max_new_tokens 256 leaves no room for a prompt"):
        load_config(write(tmp_path, evaluate__max_new_tokens=256))


@pytest.mark.parametrize("change", [{"evaluate__concurrency": 81}, {"load__concurrencies": [1, 81]}])
def test_a_measurement_does_not_overload_the_engine(tmp_path: Path, change: dict[str, object]) -> None:
    load_config(write(tmp_path, evaluate__concurrency=80, load__concurrencies=[1, 80]))
    with pytest.raises(ConfigError, match=r"up to 81 questions at once, and the engine refuses more than 80; raise"):
        load_config(write(tmp_path, **change))
    with pytest.raises(ConfigError, match=r"load\.output_tokens 256 leaves no room for a prompt"):
        load_config(write(tmp_path, load__output_tokens=256))


def test_an_override_wins_over_the_file() -> None:
    config = load_config(ROOT / "configs" / "smoke.yaml", ("data.replay=0", "train.learning_rate=1.0e-3"))
    assert config.data.replay == 0
    assert config.train.learning_rate == 1e-3


@pytest.mark.parametrize("override", ["data.replay", "=3", "hardware.device.x=1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(ROOT / "configs" / "smoke.yaml", (override,))


def test_an_override_of_an_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.replya"):
        load_config(ROOT / "configs" / "smoke.yaml", ("data.replya=0",))


def test_an_unknown_profile_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: a6000_48gb, cpu, h200_capped_48gb, l40s_48gb"):
        load_config(write(tmp_path, hardware="rtx_5"))


@pytest.mark.parametrize(("text", "why"), [("- 1", "mapping"), ("a: [", "not YAML")])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("train.tokens_per_batch=100",), r"data.max_tokens 128 does not fit train.tokens_per_batch 100"),
        (("train.optimizer=paged_adamw_8bit",), "needs hardware.device cuda; set it to adamw"),
        (("train.patience=0",), r"train\.patience"),
    ],
)
def test_training_that_cannot_work_is_refused_before_anything_starts(overrides: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(ROOT / "configs" / "smoke.yaml", overrides)


@pytest.mark.parametrize(
    ("train", "why"),
    [({"batch_size": 1}, "leaves some of hardware.gpus 2 without a row"), ({"retry_out_of_memory": True}, "gpus 1")],
)
def test_several_devices_need_rows_for_each_and_do_not_retry(
    train: dict[str, object], why: str, tmp_path: Path
) -> None:
    profile = {"name": "two", "device": "cpu", "memory_gib": 8, "gpus": 2}
    config = write(tmp_path, hardware=profile, **{f"train__{key}": value for key, value in train.items()})
    with pytest.raises(ConfigError, match=why):
        load_config(config)


def test_a_section_that_is_said_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text((ROOT / "configs" / "smoke.yaml").read_text() + "\ngate: {}\n")
    with pytest.raises(ConfigError, match="'gate' is said twice"):
        load_config(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"serving__strategy": "adapter"}, "set export.artifact adapter too"),
        ({"export__artifact": "adapter", "serving__strategy": "reload"}, "reload swaps whole models"),
        ({"export__artifact": "adapter", "export__scheme": "gptq_int8"}, "calibrated for each run; set int8_w8a8"),
        ({"export__artifact": "adapter"}, "on a CPU needs export.scheme bf16"),
        ({"export__artifact": "adapter", "export__scheme": "bf16"}, "keep_merged needs export.artifact merged"),
    ],
)
def test_adapters_that_could_not_be_served_are_refused(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(write(tmp_path, **changes))


def test_an_adapter_and_its_strategy_go_together(tmp_path: Path) -> None:
    changes = {"export__artifact": "adapter", "export__scheme": "bf16", "export__keep_merged": False}
    for strategy in ("auto", "restart", "adapter"):
        assert load_config(write(tmp_path, **changes, serving__strategy=strategy)).serving.strategy == strategy
