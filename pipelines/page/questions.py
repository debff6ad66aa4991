"""What was asked: prompts and images of test items, found again in the prepared data set and in scenario packs."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import BadInput
from pipelines.evaluation import Scenario
from pipelines.scenarios.opened import PackItems, read_pack_items
from pipelines.scenarios.shelf import find_pack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """One question as it was put."""

    prompt: str
    images: tuple[Path, ...]


def asked_rows(dataset: Path | None, items: Collection[str]) -> Mapping[str, Asked]:
    """The questions of the test split with these names; none where the data set is not there any more.

    Args:
        dataset: Of the step `prepare`, or None where that has not finished.
    """
    if dataset is None or not (dataset / "test.jsonl").is_file():
        return {}
    with (dataset / "test.jsonl").open("rb") as lines:
        rows = filter(None, map(_row, lines))
        return {row["id"]: _asked(row["messages"][:-1], dataset) for row in rows if row["id"] in items}


def _row(line: bytes) -> dict[str, Any] | None:
    """None for a line that was damaged since it was asked: its answer is shown without its question."""
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        log.warning("the report shows no question of a damaged line of the test split: %r", line[:80])
        return None
    return row


def asked_packs(names: Sequence[str], scenarios: Sequence[Scenario], items: Collection[str]) -> Mapping[str, Asked]:
    """The questions of scenario packs with these names; none of a pack that is another by now.

    Packs are recognised by the bytes of their images: none is decoded, as the page shows a few of thousands.

    Args:
        names: `evaluate.scenarios`.
        scenarios: As the report names them.
    """
    digests = {scenario.digest for scenario in scenarios}
    found = {}
    for pack in filter(None, map(_opened, names)):
        if pack.digest in digests:
            named = {f"{pack.pack.name}/{item.id}": item for item in pack.items}
            for name in named.keys() & items:
                images = tuple(pack.folder / path for path in named[name].images)
                found[name] = Asked(pack.prompt(named[name]), images)
    return found


def _opened(name: str) -> PackItems | None:
    try:
        return read_pack_items(find_pack(name))
    except BadInput as changed:
        log.warning("the report shows no question of scenario %s: %s", name, changed)
        return None


def _asked(messages: list[dict[str, Any]], folder: Path) -> Asked:
    """Everything but the last answer, as one text; who speaks is said only where more than one turn was."""
    parts = [part for message in messages for part in message["content"]]
    images = tuple(folder / part["image"] for part in parts if part["type"] == "image")
    return Asked("\n".join(_turns(messages)), images)


def _turns(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        yield text if len(messages) == 1 else f"{message['role']}: {text}"
