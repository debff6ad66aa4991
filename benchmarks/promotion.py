"""How long requests wait for a promotion, by strategy: real engine, real Caddy, questions in flight the whole time.

usage: python benchmarks/promotion.py CONFIG FIRST SECOND [--base BASE] [--strategies restart reload] [--times 4]
                                      [--out FOLDER] [--together]

FIRST and SECOND are exports of one shape with other weights, such as two of `benchmarks/true_shape.py` exported by
`vlmops export`; their golden answers are recorded from an engine of each before anything is measured. Weights may be
random: what is measured is time, and that no request is lost.

With `--base` they are adapters, as `vlmops export --adapter-only` or `benchmarks/random_adapters.py` writes them, and
the strategies are restart and adapter:

    python -m benchmarks.true_release /dev/shm/int8
    python -m benchmarks.random_adapters /dev/shm/int8 /dev/shm/first /dev/shm/second --rank 16
    python -m benchmarks.promotion CONFIG /dev/shm/first /dev/shm/second --base /dev/shm/int8
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.settings import Settings
from pipelines.system.manifest import manifest_digest
from pipelines.system.processes import free_port, running, wait_until
from serving import front
from serving.adapter import read_adapter
from serving.engine import engine
from serving.promote import Promotion
from serving.served import Served
from serving.service import stop_service
from tests.serving.recorded_golden import SOMETHING, record_golden
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic


def main() -> None:
    """Measure every strategy, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="whose sections hardware, images and serving hold")
    parser.add_argument("models", type=Path, nargs=2)
    parser.add_argument("--base", type=Path, help="of both, where they are adapters")
    parser.add_argument("--strategies", nargs="+", choices=("restart", "reload", "adapter"))
    parser.add_argument("--times", type=int, default=4, help="promotions of each, there and back")
    parser.add_argument("--rate", type=float, default=4, help="questions a second")
    parser.add_argument("--together", action="store_true", help="record both golden answers at once, on a large card")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "promotion", help="logs and state")
    options = parser.parse_args()
    for name in ("FRONT", "ENGINE", "READY", "KEYS"):
        os.environ[f"VLMOPS_{name}_PORT"] = str(free_port())
    os.environ["VLMOPS_HOME"] = str(options.out)
    settings, config = Settings(), load_config(options.config)
    strategies = options.strategies or ["restart", "adapter" if options.base else "reload"]
    first, second = (
        _version(number, model, options.base, config, options.out) for number, model in enumerate(options.models, 1)
    )
    with ThreadPoolExecutor(2 if options.together else 1) as pool:
        list(pool.map(lambda version: _record(version, options.out), (first, second)))
    table = Table(title="hold in seconds, a question in flight the whole time")
    for column in ("strategy", "promotions", "p50", "max", "longest answer", "questions", "lost"):
        table.add_column(column)
    with ExitStack() as stack:
        _start_front(settings, config, stack)
        stack.callback(stop_service, settings)
        for strategy in strategies:
            stop_service(settings)  # whether an engine may take other weights is decided when it starts
            versions = _by(strategy, first), _by(strategy, second)
            table.add_row(strategy, *(row := _measure(settings, versions, options.times, options.rate)))
            print(strategy, *row, flush=True)  # a lent machine may be gone before the last one
    Console().print(table)


def _version(number: int, folder: Path, base: Path | None, config: Config, out: Path) -> Served:
    """A whole model in the folder, or an adapter on the base."""
    model = folder if base is None else base
    return Served(
        version=number,
        digest=manifest_digest(model),
        model=model.resolve(),
        adapter=None if base is None else read_adapter(folder.resolve(), manifest_digest(folder)),
        golden=out / f"golden-{number}" / "golden.jsonl",
        serving=config.serving.model_copy(update={"watch_seconds": 2.0}),
        images=config.images,
        hardware=config.hardware,
    )


def _record(version: Served, out: Path) -> None:
    with engine(version.launch(), out / f"golden-{version.version}.log") as measured:
        measured.wait_ready(version.serving.start_seconds)
        record_golden(measured.url, version)


def _by(strategy: str, version: Served) -> Served:
    return version.model_copy(update={"serving": version.serving.model_copy(update={"strategy": strategy})})


def _start_front(settings: Settings, config: Config, stack: ExitStack) -> None:
    front.prepare(settings, config.serving)
    for ward in front.wards(settings):
        stack.enter_context(
            running(ward.command, settings.state / "logs" / f"{ward.name}.log", ward.environment, ward.folder)
        )
    wait_until(lambda: front.in_flight(settings) is not None, 30, lambda: SystemExit("no Caddy"))


def _measure(settings: Settings, versions: tuple[Served, Served], times: int, rate: float) -> tuple[str, ...]:
    """Promote there and back, and tell what a row says."""
    registry = RecordingRegistry(settings.home / f"registry-{versions[0].serving.strategy}.json")
    Promotion(settings, registry, versions[0]).run()
    with Traffic(settings, versions[0].serving.name, rate=rate, **SOMETHING) as traffic:
        runs = [Promotion(settings, registry, versions[(turn + 1) % 2]).run() for turn in range(times)]
    holds = [run.hold_seconds for run in runs]
    figures = (statistics.median(holds), max(holds), traffic.longest_seconds)
    done = f"{len(runs)} {'/'.join(sorted({run.strategy for run in runs}))}"
    return (done, *(f"{figure:.2f}" for figure in figures), str(traffic.outcomes.total()), str(traffic.lost.total()))


if __name__ == "__main__":
    main()
