"""The probe: does the engine that was started give the answers that its version gave when it was measured?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import EngineFailed, VlmopsError
from serving.client import Client, served_names
from serving.golden import Golden, encoded, read_golden
from serving.measure import COMPLETE


@dataclass(frozen=True)
class ProbeResult:
    """How many golden answers came again."""

    matched: int
    asked: int
    failures: tuple[str, ...]
    """One sentence for each that did not."""

    def require(self, share: float) -> None:
        """Raise EngineFailed unless at least this share of the answers came again."""
        if self.asked == 0:
            raise EngineFailed("there are no golden answers to compare with; measure the version again")
        if self.matched < share * self.asked:
            found = "; ".join(self.failures[:3])
            raise EngineFailed(f"{self.matched} of {self.asked} golden answers came again, {share:.0%} must: {found}")


def probe(url: str, name: str, golden: Path, timeout_seconds: float = 60) -> ProbeResult:
    """Ask the golden questions under a version's own name, and compare exactly.

    Args:
        name: `<model>-v<version>`, which only an engine that serves this version knows.
        timeout_seconds: For one answer.

    Raises:
        EngineFailed: The engine serves another version.
    """
    names = served_names(url)
    if name not in names:
        raise EngineFailed(f"{url} serves {', '.join(names)} and not {name}")
    items = read_golden(golden)
    failures = asyncio.run(_failures(url, name, items, golden.parent, timeout_seconds))
    found = tuple(failure for failure in failures if failure)
    return ProbeResult(matched=len(items) - len(found), asked=len(items), failures=found)


async def _failures(url: str, name: str, items: list[Golden], folder: Path, timeout_seconds: float) -> list[str | None]:
    async with Client(url, timeout_seconds=timeout_seconds) as client:
        # One after another: the size of a batch may move the last bit of a close decision.
        return [await _failure(client, name, item, folder) for item in items]


async def _failure(client: Client, name: str, item: Golden, folder: Path) -> str | None:
    try:
        reply = await client.ask(name, encoded(item, folder), item.max_tokens)
    except VlmopsError as error:
        return f"{item.item}: {error}"
    if reply.finish_reason not in COMPLETE:
        return f"{item.item}: ended by {reply.finish_reason}"
    if reply.text != item.answer:
        return f"{item.item}: {reply.text!r} instead of {item.answer!r}"
    return None
