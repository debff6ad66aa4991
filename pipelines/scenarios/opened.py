"""A pack that is whole, and its digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.evaluation import Scenario
from pipelines.scenarios.items import Item
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pictures import Picture
from pipelines.scenarios.scorers.registry import REVISION
from pipelines.system.manifest import text_digest


@dataclass(frozen=True)
class OpenPack:
    """A checked pack with its items."""

    folder: Path
    pack: Pack
    items: tuple[Item, ...]
    pictures: Mapping[str, Picture]
    """By path."""

    @property
    def digest(self) -> str:
        """Of everything that decides how an answer is scored, and of nothing else.

        The gate's rules and descriptions are left out, so that to change them brings no new test split, and no new
        quota of candidates.
        """
        slices = {
            name: each.model_dump_json(by_alias=True, exclude={"gate"}) for name, each in self.pack.slices.items()
        }
        texts = [REVISION, self.pack.name, *(text for pair in sorted(slices.items()) for text in pair)]
        return text_digest(*texts, *(text for item in sorted(self.items, key=_id) for text in self._texts(item)))

    @property
    def scenario(self) -> Scenario:
        """As a report names it."""
        return Scenario(
            name=self.pack.name,
            digest=self.digest,
            requirements=self.pack.requirements,
            limits=self.pack.named_limits,
        )

    def prompt(self, item: Item) -> str:
        """What is asked: a question of its own, or its slice's."""
        return item.prompt or self.pack.slices[item.slice].prompt or ""

    def _texts(self, item: Item) -> Iterator[str]:
        yield from (item.id, item.slice, self.prompt(item), item.system or "", item.expected_text)
        yield str(len(item.images))
        yield from (self.pictures[path].content for path in item.images)


def _id(item: Item) -> str:
    return item.id
