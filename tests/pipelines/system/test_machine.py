"""What a processor can compute is read, not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import MachineUnfit
from pipelines.system.machine import Gpu, int8_moe_kernel, require_disk

ZEN = "vendor_id: AuthenticAMD\nflags: avx2 avx512f avx512_bf16"
SAPPHIRE_RAPIDS = "vendor_id: GenuineIntel\nflags: avx512f amx_tile amx_int8"
OLD_INTEL = "vendor_id: GenuineIntel\nflags: avx2"


@pytest.mark.parametrize(
    ("cpuinfo", "zentorch", "kernel"),
    [
        (ZEN, True, "zentorch"),
        (ZEN, False, None),
        (SAPPHIRE_RAPIDS, False, "amx"),
        (OLD_INTEL, True, None),
        ("", True, None),
    ],
)
def test_kernel_of_a_processor(cpuinfo: str, zentorch: bool, kernel: str | None) -> None:
    assert int8_moe_kernel(cpuinfo, zentorch=zentorch) == kernel


def test_a_card_is_named_with_what_decides_what_it_can_do() -> None:
    assert str(Gpu(name="NVIDIA L40S", memory_gib=44.99, capability=(8, 9))) == "NVIDIA L40S, 45.0 GiB, capability 8.9"


def test_a_full_disk_is_said_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match=r"the export needs 1000000000\.0 GB .* are free; free some"):
        require_disk(tmp_path, 10**18, "the export")
    require_disk(tmp_path, 1, "the export")
