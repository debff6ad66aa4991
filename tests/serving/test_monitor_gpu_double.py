"""The cards by NVML: what is told is told rightly, what is not is unknown, and no card is no error."""

from __future__ import annotations

import inspect
import os

import pynvml
import pytest

from pipelines.monitoring.series import THROTTLE_REASONS
from serving.monitor_gpu import Cards, owner_of
from tests.serving.nvml_double import Event, Memory, NvmlDouble, Process, Utilization

NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
LOST = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
FUNCTIONS = sorted(name for name in vars(NvmlDouble) if name.startswith("nvml") and callable(getattr(NvmlDouble, name)))


def owner(pid: int) -> str:
    return "engine" if pid == os.getpid() else "unknown"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_double_has_the_functions_of_pynvml(name: str) -> None:
    ours = list(inspect.signature(getattr(NvmlDouble, name)).parameters)[1:]
    assert ours == list(inspect.signature(getattr(pynvml, name)).parameters)


def test_the_double_has_the_fields_of_pynvml() -> None:
    assert len(FUNCTIONS) >= 17
    for double, real in (
        (Memory, pynvml.c_nvmlMemory_t), (Utilization, pynvml.c_nvmlUtilization_t), (Event, pynvml.c_nvmlEventData_t),
        (Process, pynvml.c_nvmlProcessInfo_v2_t),
    ):  # fmt: skip
        fields = {name for name, *_ in real._fields_}
        assert set(double.__dataclass_fields__) <= fields
    constants = [name for name in vars(NvmlDouble) if name.startswith(("NVML", "nvml")) and name not in FUNCTIONS]
    assert len(constants) >= 12
    assert all(getattr(NvmlDouble, name) == getattr(pynvml, name) for name in constants)


def test_a_card_is_what_nvml_says_in_our_units() -> None:
    with Cards(nvml := NvmlDouble(processes=(Process(os.getpid()), Process(2**22 + 1)))).opened() as cards:
        (card,) = cards.look(owner)
        assert cards.state == "cards"
        assert nvml.open == 1
    assert nvml.open == 0
    assert card.memory_used_bytes == 129_347_551_232
    assert (card.utilization, card.temperature_celsius) == (0.98, 63)
    assert (card.power_watts, card.power_limit_watts) == (653.127, 700)
    assert card.throttled == ("sw_power_cap",)
    assert card.processes == {"engine": 1, "run": 0, "other": 0, "unknown": 1}
    assert card.xids == {}


def test_every_reason_for_lower_clocks_has_its_name() -> None:
    named = set()
    for bit in range(10):
        with Cards(NvmlDouble(clocks=1 << bit)).opened() as cards:
            named |= set(cards.look(owner)[0].throttled or ())
    assert named == set(THROTTLE_REASONS)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_machine_without_a_driver_has_no_cards_and_that_is_no_fault(code: int) -> None:
    with Cards(NvmlDouble(init=pynvml.NVMLError(code))).opened() as cards:
        assert cards.look(owner) == ()
        assert cards.state == "none"
        assert cards.why.startswith("no GPU here")


def test_this_machine_is_read_by_the_real_module() -> None:
    with Cards().opened() as cards:
        assert len(cards.look(owner)) == 0 or cards.state == "cards"
        assert cards.state in {"none", "cards"}


@pytest.mark.parametrize("nvml", [
    NvmlDouble(init=pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)),
    NvmlDouble(fails={"nvmlDeviceGetHandleByIndex": LOST}),
])  # fmt: skip
def test_a_driver_that_does_not_answer_is_unknown_and_not_absent(nvml: NvmlDouble) -> None:
    with Cards(nvml).opened() as cards:
        assert cards.look(owner) == ()
        assert cards.state == "unknown"
        assert "nvidia-smi" in cards.why
    assert nvml.open == 0


def test_a_card_that_falls_off_the_bus_while_it_watches_is_unknown_until_it_answers() -> None:
    nvml = NvmlDouble(events=[Event(0, 79)])
    with Cards(nvml).opened() as cards:
        assert cards.state == "cards"
        nvml.fails = dict.fromkeys((name for name in FUNCTIONS if name.startswith("nvmlDeviceGet")), LOST)
        (card,) = cards.look(owner)
        assert cards.state == "unknown"
        assert "card 0 answers nothing" in cards.why
        nvml.fails = {}
        (card,) = cards.look(owner)
        assert (cards.state, cards.why, card.xids) == ("cards", "", {79: 1})


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_comes_up_later_is_found(code: int) -> None:
    nvml = NvmlDouble(init=pynvml.NVMLError(code))
    with Cards(nvml).opened() as cards:
        assert cards.look(owner) == ()
        nvml.init = None
        for _ in range(3):
            assert len(cards.look(owner)) == 1
        assert (cards.state, nvml.open) == ("cards", 1)
    assert nvml.open == 0


def test_what_a_card_does_not_support_is_unknown_and_the_rest_is_told() -> None:
    silent = [name for name in FUNCTIONS if name.startswith("nvmlDeviceGet") and name not in {
        "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetIndex", "nvmlDeviceGetPowerUsage",
    }]  # fmt: skip
    nvml = NvmlDouble(fails=dict.fromkeys([*silent, "nvmlDeviceRegisterEvents"], NOT_SUPPORTED))
    with Cards(nvml).opened() as cards:
        (card,) = cards.look(owner)
    told = card.model_dump(exclude={"index", "name", "uuid"})
    assert {name for name, value in told.items() if value is not None} == {"power_watts"}


def test_xids_are_counted_by_card_and_kept_while_it_watches() -> None:
    nvml = NvmlDouble(cards=2, events=[Event(1, 79), Event(1, 79), Event(0, 31)])
    with Cards(nvml).opened() as cards:
        assert [card.xids for card in cards.look(owner)] == [{31: 1}, {79: 2}]
        nvml.events.append(Event(0, 31))
        assert [card.xids for card in cards.look(owner)] == [{31: 2}, {79: 2}]


def test_whose_a_process_is() -> None:
    assert owner_of({os.getpgid(0)}, lambda _: True)(os.getpid()) == "engine"
    whose = owner_of(set(), lambda _: True)
    assert whose(os.getpid()) == "other"
    assert whose(2**22 + 1) == "unknown"


def test_a_number_of_the_host_is_not_taken_for_a_process_of_the_container_that_bears_it() -> None:
    assert owner_of({os.getpgid(0)})(os.getpid()) == "unknown"  # this process has no card open
