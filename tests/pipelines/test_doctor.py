"""What is missing is said before work starts, each thing with its way out."""

from __future__ import annotations

import pytest

from pipelines import doctor
from pipelines.errors import BAD_INPUT, DONE, MachineUnfit
from pipelines.settings import Settings


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


def test_a_small_disk_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SMALLEST_DISK_GB", 10**9)
    with pytest.raises(MachineUnfit, match=r"disk: .* GB free in .*; .*VLMOPS_HOME"):
        doctor.require_fit(settings)
