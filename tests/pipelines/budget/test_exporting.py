"""What the export needs of the host is said before it starts, and rows that no group divides are refused."""

from __future__ import annotations

import pytest

from pipelines.budget.base import Base
from pipelines.budget.demand import GIB
from pipelines.budget.exporting import GROUP_SIZES, file_bytes, group_objection, host_need
from pipelines.cli import main
from pipelines.config import Config
from pipelines.errors import BAD_INPUT, DONE
from pipelines.schemes import SCHEMES, Name, scheme_of
from pipelines.settings import ROOT, Settings
from tests.pipelines.budget.variants import changed


@pytest.mark.parametrize(("scheme", "gb"), [("bf16", 62.1), ("int8_w8a8", 32.3), ("int4_w4a16", 17.8)])
def test_files_have_the_known_size(base: Base, scheme: Name, gb: float) -> None:
    assert file_bytes(base, SCHEMES[scheme]) / 1e9 == pytest.approx(gb, rel=0.01)


def test_the_stream_takes_a_gib_whatever_the_model_and_calibration_the_model(qwen: Config, base: Base) -> None:
    assert host_need(qwen, base).memory_bytes == GIB
    calibrated = host_need(changed(qwen, "export", scheme="gptq_int4"), base)
    assert calibrated.memory_bytes > 2 * base.parameters.total
    assert "calibration" in calibrated.why


@pytest.mark.parametrize(
    ("values", "bf16_files", "other_files"),
    [
        ({"scheme": "bf16"}, 1, 0),
        ({"scheme": "int8_w8a8"}, 0, 2),
        ({"scheme": "int8_w8a8", "keep_merged": True}, 1, 2),
        ({"scheme": "gptq_int8"}, 1, 2),
    ],
)
def test_every_file_that_is_written_is_counted(
    qwen: Config, base: Base, values: dict[str, object], bf16_files: int, other_files: int
) -> None:
    config = changed(qwen, "export", **values)
    merged, model = (file_bytes(base, scheme) for scheme in (SCHEMES["bf16"], config.export.stored))
    assert host_need(config, base).disk_bytes == bf16_files * merged + other_files * model


def test_groups_must_divide_every_row(base: Base, smoke: Config) -> None:
    assert group_objection(base.shape, SCHEMES["int4_w4a16"]) is None
    assert group_objection(base.shape, SCHEMES["int8_w8a8"]) is None
    for size in GROUP_SIZES:
        assert (group_objection(base.shape, scheme_of("int4_w4a16", size)) is None) == (base.shape.width % size == 0)


def test_the_plan_says_which_groups_would_do(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """The experts of the embedded default are 96 wide."""
    smoke = [str(ROOT / "configs" / "smoke.yaml"), "--set", "export.scheme=int4_w4a16"]
    assert main(["plan", *smoke]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "rows of 96 inputs cannot be cut into groups of 128" in error
    assert "set export.group_size to 32" in error
    assert main(["plan", *smoke, "--set", "export.group_size=32"]) == DONE
    out = capsys.readouterr().out
    assert "GB for the model in int4_w4a16" in out
    assert "export: 1.0 GiB of host memory" in out
