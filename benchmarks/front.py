"""What the front costs a request: the engine double asked directly, through Caddy alone, and with the keys service.

Rounds of all three take turns, so that they see the same machine; a figure is the median over rounds. The double
answers at once, so that what is seen is the way to it.

usage: .venv-ml/bin/python benchmarks/front.py [--rounds 7] [--requests 400] [--body-kb 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipelines.config_file import load_config
from pipelines.errors import EngineFailed
from pipelines.settings import ROOT, Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import free_port, running, wait_until
from serving import front
from serving.client import healthy

DOUBLE = ROOT / "tests" / "serving" / "engine_double.py"
DIRECT, ALONE, WHOLE = "direct", "Caddy alone", "Caddy and keys"


@dataclass(frozen=True)
class Way:
    """A way to the engine."""

    name: str
    url: str
    key: str


@contextmanager
def ways() -> Iterator[list[Way]]:
    """The double and two fronts before it."""
    config = load_config(ROOT / "configs" / "smoke.yaml")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as block:
        home = Path(folder)
        (home / "double.json").write_text(json.dumps({"answers": {}, "seconds": 0}))
        engine_port = free_port()
        command = [sys.executable, str(DOUBLE), folder, "--host", "127.0.0.1", "--port", str(engine_port)]
        block.enter_context(running([*command, "--served-model-name", "digits"], home / "engine.log"))
        found = [Way(DIRECT, f"http://127.0.0.1:{engine_port}", "none")]
        for name in (ALONE, WHOLE):
            ports = {f"{port}_port": free_port() for port in ("front", "ready", "keys")}
            settings = Settings(home=home / name.split()[-1], engine_port=engine_port, **ports)
            front.prepare(settings, config.serving)
            if name == ALONE:
                _leave_out_keys(settings.serving / "Caddyfile")
            for ward in front.wards(settings):
                block.enter_context(
                    running(ward.command, home / f"{name} {ward.name}.log", ward.environment, ward.folder)
                )
            front.release(settings)
            found.append(Way(name, settings.front_url, credential(settings.state, "front_key")))
        wait_until(lambda: healthy(found[0].url), 10, lambda: EngineFailed("the double does not answer"))
        time.sleep(2)
        yield found


def _leave_out_keys(caddyfile: Path) -> None:
    text = caddyfile.read_text()
    start = text.index("\t\tforward_auth")
    end = text.index("\n\t\t}\n", start) + len("\n\t\t}\n")
    caddyfile.write_text(text[:start] + text[end:])


async def measure(way: Way, requests: int, body_kb: int, at_once: int) -> tuple[float, float]:
    """Median milliseconds of a request, and requests a second."""
    message = {"role": "user", "content": [{"type": "text", "text": "question"}]}
    body = {"model": "digits", "max_tokens": 1, "user": "x" * 1000 * body_kb, "messages": [message]}
    content, seconds = json.dumps(body).encode(), []
    headers = {"Authorization": f"Bearer {way.key}", "Content-Type": "application/json"}
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(headers=headers, timeout=60, limits=limits, trust_env=False) as client:
        slots = asyncio.Semaphore(at_once)

        async def ask() -> None:
            async with slots:
                began = time.perf_counter()
                answer = await client.post(f"{way.url}/v1/chat/completions", content=content)
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(requests)))
        return statistics.median(seconds) * 1000, requests / (time.perf_counter() - began)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--body-kb", type=int, default=200)
    args = parser.parse_args()
    with ways() as found:
        print("| at once | way | median ms | requests/s | ms, of direct | requests/s, of Caddy alone |")
        print("|---|---|---|---|---|---|")
        for at_once in (1, 8):
            seen: dict[str, list[tuple[float, float]]] = {way.name: [] for way in found}
            for _ in range(args.rounds):
                for way in found:
                    seen[way.name].append(asyncio.run(measure(way, args.requests, args.body_kb, at_once)))
            show(at_once, seen)


def show(at_once: int, seen: dict[str, list[tuple[float, float]]]) -> None:
    """Print the rows of one concurrency; ratios are medians of ratios within a round."""
    for name, rounds in seen.items():
        ms, rate = (statistics.median(values) for values in zip(*rounds, strict=True))
        slower = statistics.median(mine[0] / direct[0] for mine, direct in zip(rounds, seen[DIRECT], strict=True))
        faster = statistics.median(mine[1] / alone[1] for mine, alone in zip(rounds, seen[ALONE], strict=True))
        print(f"| {at_once} | {name} | {ms:.2f} | {rate:.0f} | {slower:.2f} | {faster:.2f} |")


if __name__ == "__main__":
    main()
