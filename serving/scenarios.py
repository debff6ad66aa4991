"""Scenario packs as questions of the same run: asked beside the sealed ones, by the same engine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.config import Config
from pipelines.errors import BadInput
from pipelines.scenarios.check import open_pack
from pipelines.scenarios.items import Item
from pipelines.scenarios.opened import OpenPack
from pipelines.scenarios.shelf import find_pack
from pipelines.system.durable import sha256_file
from pipelines.system.manifest import text_digest
from serving.questions import Message, Question


def open_scenarios(config: Config, dataset: Path) -> tuple[OpenPack, ...]:
    """The packs that `evaluate.scenarios` names, by their names.

    Args:
        dataset: The prepared data set, whose training split must show none of their images.

    Raises:
        BadInput: A pack is not whole, asks for more than the engine takes, shows what was trained on, or two have one
            name; lists the items.
    """
    packs = tuple(open_pack(find_pack(name)) for name in config.evaluate.scenarios)
    names = [pack.pack.name for pack in packs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"evaluate.scenarios: two packs are called {twice[0]}; rename one in its pack.yaml")
    problems = [problem for pack in packs for problem in _too_much(pack, config)]
    if packs:
        problems += _leaks(packs, dataset)
    if problems:
        raise BadInput("\n  ".join([f"evaluate.scenarios: {len(problems)} problem(s)", *problems]))
    return tuple(sorted(packs, key=lambda pack: pack.pack.name))


def asked_digest(data: str, packs: Sequence[OpenPack]) -> str:
    """Of everything that is asked: of the sealed questions alone where there is no pack.

    Args:
        data: Of the sealed questions.
    """
    return text_digest(data, *(pack.digest for pack in packs)) if packs else data


def questions(packs: Iterable[OpenPack]) -> tuple[Question, ...]:
    """Every item of the packs."""
    return tuple(_question(pack, item) for pack in packs for item in pack.items)


def _question(pack: OpenPack, item: Item) -> Question:
    asked = [{"type": "image", "image": path} for path in item.images]
    messages: list[Message] = [{"role": "user", "content": [*asked, {"type": "text", "text": pack.prompt(item)}]}]
    if item.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": item.system}]})
    rules = pack.pack.slices[item.slice]
    return Question(
        item=f"{pack.pack.name}/{item.id}",
        slice=f"{pack.pack.name}/{item.slice}",
        messages=tuple(messages),
        expected=item.expected_text,
        folder=pack.folder,
        scorer=rules.scorer,
        max_tokens=rules.max_new_tokens,
        stop=rules.stop,
    )


def _too_much(pack: OpenPack, config: Config) -> Iterator[str]:
    """What the engine would refuse for sure; how long a prompt is, it says itself."""
    limits = config.serving
    for name, each in pack.pack.slices.items():
        if (each.max_new_tokens or 0) >= limits.max_model_len:
            yield (
                f"{pack.pack.name}/{name}: max_new_tokens {each.max_new_tokens} leaves no room for a prompt in "
                f"serving.max_model_len {limits.max_model_len}"
            )
    for item in pack.items:
        if len(item.images) > limits.images_per_request:
            yield (
                f"{pack.pack.name}/{item.id}: shows {len(item.images)} images; serving.images_per_request is "
                f"{limits.images_per_request}"
            )


def _leaks(packs: Iterable[OpenPack], dataset: Path) -> Iterator[str]:
    """Items with an image of the training split: an answer that was learned says nothing."""
    files, pixels = _trained_on(dataset)
    for pack in packs:
        for item in pack.items:
            for path in item.images:
                picture = pack.pictures[path]
                if picture.content in files or picture.pixels[:PIXEL_DIGITS] in pixels:
                    yield f"{pack.pack.name}/{item.id} leaks: {path} is trained on; take the image out of either"


PIXEL_DIGITS = 16
"""Of the digest of its pixels, by which a prepared data set names an image file."""


def _trained_on(dataset: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Digests of the training images' files, and the first digits of those of their pixels."""
    with (dataset / "train.jsonl").open(encoding="utf-8") as rows:
        paths = {
            part["image"]
            for row in rows
            for message in json.loads(row)["messages"]
            for part in message["content"]
            if part["type"] == "image"
        }
    files = frozenset(sha256_file(dataset / path) for path in paths)
    return files, frozenset(Path(path).name[:PIXEL_DIGITS] for path in paths)
