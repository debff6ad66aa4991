"""The probe: does the engine that was started give the answers that its version gave when it was measured?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import EngineBusy, EngineFailed, Unreachable, VlmopsError
from pipelines.evaluation import COMPLETE
from serving.client import QUICK, Client, Reply, served_names
from serving.golden import Golden, encoded, read_golden

BUSY_SECONDS = 0.1
"""Between two attempts of a question for which there is no place among those of clients."""

REPEATED = 3
"""Times that one character makes up a whole answer before it counts as ruined."""


@dataclass(frozen=True)
class ProbeResult:
    """How many golden answers came again."""

    items: tuple[str, ...]
    """All that were asked."""

    failures: Mapping[str, str]
    """A sentence for each that did not come again, by item."""

    ruined: frozenset[str]
    """Of these, the ones answered by nothing, or by one character over and over."""

    silent: bool = False
    """Whether a question was left unanswered. After one that took all of its time none is asked: requests may wait."""

    @property
    def asked(self) -> int:
        """How many golden answers there are."""
        return len(self.items)

    @property
    def matched(self) -> int:
        """How many came again."""
        return self.asked - len(self.failures)

    def require(self, share: float, among: Set[str] | None = None) -> None:
        """Hold the answers against what must come again.

        Args:
            share: Of them, at least.
            among: Only these items count; all if it is None.

        Raises:
            EngineFailed: Fewer came, or one was ruined.
        """
        asked = set(self.items if among is None else among)
        failed = [found for item, found in self.failures.items() if item in asked]
        if not asked:
            raise EngineFailed("there are no golden answers to compare with; measure the version again")
        matched = len(asked) - len(failed)
        if matched < share * len(asked) or self.ruined & asked:
            which = "golden answers" if among is None else "golden answers that tell it from what served before"
            found = "; ".join(failed[:3])
            raise EngineFailed(f"{matched} of {len(asked)} {which} came again, {share:.0%} must: {found}")


def probe(url: str, name: str, golden: Path, timeout_seconds: float = 60) -> ProbeResult:
    """Ask the golden questions under a version's own name, and compare exactly.

    Args:
        name: `<model>-v<version>`, which only an engine that serves this version knows.
        timeout_seconds: For one answer, or for a place among the clients'; the first that does not come in time is the
            last that is asked for.

    Raises:
        BadInput: The golden file is not whole.
        EngineBusy: Clients kept its queue full for all that time, and what it did answer was not ruined.
        EngineFailed: The engine serves another version.
        Unreachable: It does not say what it serves.
    """
    names = served_names(url)
    if name not in names:
        raise EngineFailed(f"{url} serves {', '.join(names)} and not {name}")
    items = read_golden(golden)
    replies = asyncio.run(_replies(url, name, items, golden.parent, timeout_seconds))
    answered = list(zip(items, replies, strict=True))
    ruined = frozenset(item.item for item, reply in answered if _ruined(item, reply))
    busy = next((reply for reply in replies if isinstance(reply, EngineBusy)), None)
    if busy is not None and not ruined:
        raise busy
    return ProbeResult(
        items=tuple(item.item for item in items),
        failures={item.item: failed for item, reply in answered if (failed := _failure(item, reply))},
        ruined=ruined,
        silent=any(isinstance(reply, Unreachable) for reply in replies),
    )


async def _replies(
    url: str, name: str, items: list[Golden], folder: Path, timeout_seconds: float
) -> list[Reply | VlmopsError]:
    async with Client(url, timeout_seconds=timeout_seconds) as client:
        replies: list[Reply | VlmopsError] = []
        patience = min(timeout_seconds, QUICK)
        for item in items:  # one after another: the size of a batch may move the last bit of a close decision
            began = time.monotonic()
            replies.append(await _reply(client, name, item, folder, began + timeout_seconds))
            if isinstance(replies[-1], Unreachable | EngineBusy) and time.monotonic() - began >= patience:
                return replies + replies[-1:] * (len(items) - len(replies))
        return replies


async def _reply(client: Client, name: str, item: Golden, folder: Path, deadline: float) -> Reply | VlmopsError:
    messages = encoded(item, folder)
    while True:
        try:
            return await client.ask(name, messages, item.max_tokens)
        except EngineBusy as busy:  # with its clients, which says nothing of its answers
            if time.monotonic() >= deadline:
                return busy
            await asyncio.sleep(BUSY_SECONDS)
        except VlmopsError as error:
            return error


def _failure(item: Golden, reply: Reply | VlmopsError) -> str | None:
    if isinstance(reply, VlmopsError):
        return f"{item.item}: {reply}"
    if reply.finish_reason not in COMPLETE:
        return f"{item.item}: ended by {reply.finish_reason}"
    if reply.text != item.answer:
        return f"{item.item}: {reply.text!r} instead of {item.answer!r}"
    return None


def _ruined(item: Golden, reply: Reply | VlmopsError) -> bool:
    """Whether an answer is what broken weights give, and was not when it was measured."""
    return isinstance(reply, Reply) and _empty_or_one_character(reply.text) and not _empty_or_one_character(item.answer)


def _empty_or_one_character(text: str) -> bool:
    text = "".join(text.split())
    return not text or (len(text) >= REPEATED and len(set(text)) == 1)
