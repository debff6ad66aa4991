"""A running engine under every kind of traffic that is asked for, several runs each.

From a script:

    prompts = [Prompt((Path("picture.png"),), "What is this?")]
    report = measure_load(Target(url, "model", folder_of_the_model), prompts, Load(repeats=5), Path("results"))
    report.at(8).over_runs("requests_per_minute")
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.config_load import Load
from pipelines.errors import EngineFailed, Unreachable
from pipelines.load_report import LoadPoint, LoadReport, LoadRun, Traffic, traffics
from pipelines.progress import counting
from pipelines.system.processes import running, tail
from serving.client import Client
from serving.load.bench import ENVIRONMENT, Target, arguments, read_result
from serving.load.prompts import Prompt, Supply
from serving.load.watch import Watch
from serving.memory import PeakMemory

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
"""Between two looks at the engine's counters."""


def measure_load(
    target: Target, prompts: Sequence[Prompt], load: Load, folder: Path, memory: PeakMemory | None = None
) -> LoadReport:
    """Put load on an engine that answers.

    Args:
        target: The engine.
        prompts: Asked in turn, each time with other pictures.
        load: Which points, how many requests, how often.
        folder: Keeps the client's results and log.
        memory: That watches the engine, if somebody does.

    Returns:
        All points. A run that lost something was repeated once; a point with one that is invalid again carries its
        objections, and gives no figures.

    Raises:
        EngineFailed: The client did not run, or the engine has not the counters that we know.
        Unreachable: The engine is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, supply = traffics(load), Supply(prompts)
    with counting("load", len(wanted) * load.repeats) as tick:
        bench = _Bench(target, supply, load, folder, tick)
        points = tuple(bench.point(traffic) for traffic in wanted)
    report = LoadReport(
        engine=f"vLLM {version('vllm')}", load=load, points=points, peak_gib=None if memory is None else memory.gib
    )
    for objection in report.objections:
        log.warning("load is invalid: %s", objection)
    return report


class _Bench:
    """One engine and its client."""

    def __init__(self, target: Target, supply: Supply, load: Load, folder: Path, tick: Callable[[], None]) -> None:
        self._target = target
        self._supply = supply
        self._load = load
        self._folder = folder
        self._tick = tick

    def point(self, traffic: Traffic) -> LoadPoint:
        """Warm up, then measure every run."""
        asyncio.run(self._warm_up(traffic.concurrency or self._load.warmup or 1))
        return LoadPoint(
            traffic=traffic, runs=tuple(self._run(traffic, number) for number in range(self._load.repeats))
        )

    async def _warm_up(self, concurrency: int) -> None:
        """Requests that are not measured: one that is lost here costs nothing, and is noted."""
        contents = self._supply.take(self._load.warmup)
        async with Client(self._target.url) as client:

            async def ask_in_turn() -> None:
                for content in contents:
                    try:
                        await client.ask(
                            self._target.name, [{"role": "user", "content": content}], self._load.output_tokens
                        )
                    except (EngineFailed, Unreachable) as error:
                        log.warning("warming up: %s", error)

            await asyncio.gather(*(ask_in_turn() for _ in range(concurrency)))

    def _run(self, traffic: Traffic, number: int) -> LoadRun:
        """A run; one that lost something is repeated once, and then stands as it is."""
        run = self._once(traffic, number)
        if run.objections:
            log.warning(
                "run %d at %s is invalid and repeated: %s", number + 1, traffic.label, "; ".join(run.objections)
            )
            run = self._once(traffic, number)
        self._tick()
        return run

    def _once(self, traffic: Traffic, number: int) -> LoadRun:
        label = f"{traffic.label}-run-{number + 1}"
        dataset, result = self._folder / f"{label}.jsonl", self._folder / f"{label}.json"
        result.unlink(missing_ok=True)
        self._supply.write(dataset, self._load.requests)
        command = arguments(self._target, dataset, traffic, self._load, number, result)
        watch = Watch(self._target.url)
        try:
            self._serve(command, watch)
        finally:
            dataset.unlink()  # pictures, hundreds of megabytes of them
        return read_result(result, self._load, watch.end())

    def _serve(self, command: Sequence[str], watch: Watch) -> None:
        """Let the client do its work; it ends with its group, however we leave."""
        output = self._folder / "bench.log"
        with running(command, output, ENVIRONMENT) as client:
            while _still_runs(client):
                watch.look()
        if client.returncode:
            raise EngineFailed(f"vllm bench serve ended with {client.returncode}; the end of {output}:\n{tail(output)}")


def _still_runs(client: subprocess.Popen[bytes]) -> bool:
    """Whether it does after a pause."""
    try:
        client.wait(LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False
