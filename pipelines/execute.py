"""Run one step of one run: `python -m pipelines.execute RUN STEP`.

This is the only way a step is run: Airflow and the command line start this module with the interpreter of the
step's environment. Exit codes are those of pipelines.errors: 3 means that the step finished and asks to stop. Where
several processes run a step together, the first one is the one that records it.
"""

from __future__ import annotations

import argparse
import logging
import pkgutil
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pipelines import tracking
from pipelines.errors import DONE, REJECTED, VlmopsError
from pipelines.run import Run
from pipelines.settings import Settings, Team
from pipelines.steps import STEPS, Step, T
from pipelines.system.processes import end_cleanly_on_sigterm, end_with_parent

log = logging.getLogger(__name__)


def execute(run: Run, step: Step[T], *, again: bool = False) -> T:
    """Run a step, or return its recorded result if its inputs have not changed.

    Args:
        again: Run it even then; it still resumes from its own checkpoints.
    """
    with run.claim(step) as folder:
        if not again and run.finished(step):
            log.info("%s already finished; its result is reused", step.name)
            return run.read(step)
        run.forget(step)
        began = time.monotonic()
        try:
            artifact = compute(run, step, folder)
        except BaseException as error:  # Ctrl-C and SIGTERM too: whatever ended the attempt is its reason
            run.write_failure(step, error)
            raise
        run.write(step, artifact, seconds=time.monotonic() - began, peak_gib=peak_gib())
        return artifact


def compute(run: Run, step: Step[T], folder: Path) -> T:
    """Call the step's function."""
    inputs = [run.read(need) for need in step.needs]
    artifact: T = pkgutil.resolve_name(step.target)(run.config, folder, *inputs)
    return artifact


def peak_gib() -> float:
    """Peak resident memory of this process or the largest of its ended children, in GiB."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kib / 2**20


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.execute", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("step", choices=STEPS, help="name of the step")
    parser.add_argument("--again", action="store_true", help="run the step even if its result is there")
    args = parser.parse_args(argv)
    team = Team()
    logging.basicConfig(
        level=logging.WARNING if team.rank else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for each of a thousand questions
    end_cleanly_on_sigterm()
    if team.world_size > 1:
        end_with_parent()
    if team.rank:
        return assist(args.run, STEPS[args.step])
    return attempt(args.run, STEPS[args.step], again=args.again)


def attempt(root: Path, step: Step[Any], *, again: bool = False) -> int:
    """Execute a step, publish the run, and turn the outcome into an exit code."""
    try:
        run = Run.open(root)
        artifact = execute(run, step, again=again)
    except VlmopsError as error:
        log.error("%s: %s", step.name, error)
        tracking.publish_if_reachable(Run(root), Settings())
        return error.exit_code
    tracking.publish_if_reachable(run, Settings())
    return DONE if artifact.proceed else REJECTED


def assist(root: Path, step: Step[Any]) -> int:
    """Compute a step together with the process that records it."""
    try:
        run = Run.open(root)
        compute(run, step, run.folder(step))
    except VlmopsError as error:
        log.error("%s: %s", step.name, error)
        return error.exit_code
    return DONE


if __name__ == "__main__":
    sys.exit(main())
