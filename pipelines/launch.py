"""How a step's process is started: the interpreter of its environment and an argument list.

Fine-tuning on several devices is as many processes, started by `accelerate launch`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import FINETUNE, PROMOTE, Step

ACCELERATE = ("--multi_gpu", "--num_machines=1", "--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no")
"""Options of `accelerate launch`: any free port, and nothing that the config does not say."""

BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""For who promotes or looks after what serves: MLflow's client would go on asking a server that is away for 4 minutes,
and one that hangs for 16. So it is 6 s, and a minute."""


def command(step: Step[Any], run: Path, settings: Settings, *, again: bool = False) -> list[str]:
    """The argument list that runs one step.

    Args:
        again: Run it even if its result is there.
    """
    python = {"core": settings.core_python, "ml": settings.ml_python}[step.environment]
    execute = ["-m", "pipelines.execute", str(run), step.name]
    if step is FINETUNE and (gpus := Run.open(run).config.hardware.gpus) > 1:
        again = again or not Run.open(run).finished(step)  # decided here, for all of them alike
        if again:
            execute = ["-m", "accelerate.commands.launch", *ACCELERATE, f"--num_processes={gpus}", *execute]
    return [python, *execute, *(["--again"] if again else [])]


def facts(settings: Settings) -> dict[str, str | None]:
    """The machine's facts as the variables that another process reads them from; None: unset."""
    named = {f"VLMOPS_{key.upper()}": value for key, value in settings.model_dump().items()}
    return {key: None if value is None else str(value) for key, value in named.items()}


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a step's process: ours, with the machine's facts spelled out."""
    ours = facts(settings)
    inherited = {key: value for key, value in os.environ.items() if key not in ours}  # an unset fact stays unset
    return inherited | {key: value for key, value in ours.items() if value is not None}


def presets(step: Step[Any], config: Config) -> dict[str, str]:
    """What PyTorch and MLflow's client read before any code of ours runs; a machine that says otherwise is right."""
    if step is FINETUNE and config.hardware.device == "cuda":
        # Micro-batches differ in size; segments that can grow do not leave gaps that no later one fits.
        return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return BRIEF if step is PROMOTE else {}


def step_environment(step: Step[Any], run: Path, settings: Settings) -> dict[str, str]:
    """The environment of one step's process."""
    return {**presets(step, Run.open(run).config), **environment(settings)}


def run_step(step: Step[Any], run: Path, settings: Settings) -> int:
    """Run one step in its environment, its output shown, and return its exit code; the step ends if we are ended."""
    process = subprocess.Popen(command(step, run, settings), env=step_environment(step, run, settings))
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()  # the step stops what it started itself
            process.wait()


def run_module(settings: Settings, module: str, *arguments: str) -> int:
    """Run a module in the ml environment and return its exit code.

    A Ctrl-C reaches it too, and how it ends is its own business.
    """
    env = {**BRIEF, **environment(settings)}
    with subprocess.Popen([settings.ml_python, "-m", module, *arguments], env=env) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        finally:
            process.terminate()
