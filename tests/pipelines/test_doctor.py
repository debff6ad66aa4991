"""What is missing is said before work starts, each thing with its way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.config_file import load_config
from pipelines.errors import BAD_INPUT, DONE, MachineUnfit
from pipelines.hardware import Hardware
from pipelines.settings import ROOT, Settings
from pipelines.system.machine import Gpu

L40S = Gpu(name="NVIDIA L40S", memory_gib=45.0, capability=(8, 9))
H200 = Gpu(name="NVIDIA H200", memory_gib=140.4, capability=(9, 0))


def profile(name: str, *overrides: str) -> Hardware:
    return load_config(ROOT / "configs" / "qwen3_vl_30b.yaml", (f"hardware={name}", *overrides)).hardware


def test_this_machine_is_fit(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.examine(settings) == DONE
    out = capsys.readouterr().out
    assert "INT8 experts on CPU" in out
    assert "GPU" in out


def test_a_missing_environment_is_named(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    lost = settings.model_copy(update={"ml_python": "no-such-python"})
    assert doctor.examine(lost) == BAD_INPUT
    assert "make install" in capsys.readouterr().out
    with pytest.raises(MachineUnfit, match="ml environment: no-such-python; make install"):
        doctor.require_fit(lost)


def test_a_front_without_caddy_or_certificate_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{settings.ml_python}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    config = tmp_path / "config.yaml"
    tls = {"name": "box.lan", "certificate": str(tmp_path / "box.pem"), "key": str(tmp_path / "box.key")}
    smoke = load_config(ROOT / "configs" / "smoke.yaml", (f"serving.tls={tls}",))
    config.write_text(smoke.model_dump_json())
    with pytest.raises(MachineUnfit) as unfit:
        doctor.require_fit(settings.model_copy(update={"ml_python": str(python), "config": config}))
    assert f"Caddy: none beside {python}, none on PATH; make install" in str(unfit.value)
    assert "box.pem; put it there" in str(unfit.value)
    assert "box.key; put it there" in str(unfit.value)


def test_a_small_disk_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SMALLEST_DISK_GB", 10**9)
    with pytest.raises(MachineUnfit, match=r"disk: .* GB free in .*; .*VLMOPS_HOME"):
        doctor.require_fit(settings)


def test_a_machine_without_the_card_of_a_config_is_refused(settings: Settings) -> None:
    with pytest.raises(MachineUnfit, match=r"profile l40s_48gb: 0 of 1 card\(s\) with 44\.4 GiB and capability 8\.9"):
        doctor.require_fit(settings, profile("l40s_48gb"))


@pytest.mark.parametrize(
    ("gpus", "name", "good"),
    [
        ((L40S,), "l40s_48gb", True),
        ((H200,), "l40s_48gb", False),
        ((L40S,), "a6000_48gb", False),
        ((H200,), "h200_capped_48gb", True),
        ((L40S, H200), "h200_capped_48gb", True),
    ],
)
def test_the_cards_are_those_of_the_profile(gpus: tuple[Gpu, ...], name: str, good: bool) -> None:
    check = doctor.check_profile(gpus, profile(name))
    assert check.good is good
    assert "configs/hardware/NAME.yaml" in check.remedy


def test_as_many_cards_as_the_profile_wants() -> None:
    two = profile("l40s_48gb").model_copy(update={"gpus": 2})
    assert not doctor.check_profile((L40S,), two).good
    assert doctor.check_profile((L40S, L40S), two).good
