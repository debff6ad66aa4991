"""What a pack asks, and the digest of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.evaluation import Scenario
from pipelines.scenarios.items import Item, read_items
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.pack_file import read_pack, require_items
from pipelines.scenarios.pictures import Picture, hash_files
from pipelines.scenarios.problem import ITEMS, Problem, bad_input
from pipelines.scenarios.scorers.registry import REVISION
from pipelines.system.manifest import text_digest


@dataclass(frozen=True)
class PackItems:
    """What a pack asks, as far as it had to be read to know its digest: its images may be no images."""

    folder: Path
    pack: Pack
    items: tuple[Item, ...]
    contents: Mapping[str, str]
    """SHA-256 of each image's bytes, by path."""

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
        yield from (self.contents[path] for path in item.images)


@dataclass(frozen=True)
class OpenPack(PackItems):
    """A checked pack."""

    pictures: Mapping[str, Picture]
    """By path."""


def read_pack_items(folder: Path) -> PackItems:
    """The items of a pack, with no image decoded: a fraction of the time that `open_pack` takes.

    For those who ask whether a pack is still the one of some digest, and what it asks.

    Raises:
        BadInput: The pack is a template, an item cannot be read, or an image is not there; lists every problem.
    """
    pack, problems = read_pack(folder)
    if pack is None:
        raise bad_input(folder, problems)
    require_items(folder, pack)
    try:
        items, problems = read_items((folder / ITEMS).read_bytes())
    except OSError as error:
        items, problems = {}, [Problem(ITEMS, 1, f"cannot be read: {error.strerror}")]
    first = {path: line for line, item in reversed(items.items()) for path in item.images}
    hashed = hash_files(folder, first)
    contents = {path: each for path, each in hashed.items() if isinstance(each, str)}
    problems += [Problem(ITEMS, first[path], f"image {path!r} {hashed[path]}") for path in hashed.keys() - contents]
    if problems:
        raise bad_input(folder, sorted(problems))
    return PackItems(folder, pack, tuple(items.values()), contents)


def _id(item: Item) -> str:
    return item.id
