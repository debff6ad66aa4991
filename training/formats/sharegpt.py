"""ShareGPT as LLaMA-Factory and ms-swift write it: `<image>` tags in the text, images in a list beside it.

    {"images": ["a.png"], "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", ...}]}
    {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", ...}]}

Content may also be parts whose images are marks without a path, as TRL and `datasets` have it. Fields that say nothing
about the chat are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.chat.rejects import Unusable

TAG = "<image>"
MARK = {"type": "image"}
"""A part that waits for its image."""

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNSUPPORTED = ("videos", "video", "audios", "audio", "tools", "chosen", "rejected", "rejected_response")
"""Fields that change what a row means; with a value in one of them the row is refused."""


def is_sharegpt(fields: dict[str, Any]) -> bool:
    """Whether a row's images, if any, stand beside its text and not in it."""
    if fields.keys() & {"conversations", "images", "image", "system"}:
        return True
    turns = fields.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and TAG in turn["content"] for turn in turns
    )


def to_messages(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with every image where its tag was.

    Raises:
        Unusable: There are more tags than images or fewer, a role is unknown, or the row holds videos or tools.
    """
    if found := [name for name in UNSUPPORTED if fields.get(name)]:
        raise Unusable("unsupported fields", f"{', '.join(found)}; only chats of text and images are trained on")
    images = _images(fields)
    messages = [{"role": role, "content": _parts(content)} for role, content in _turns(fields)]
    marks = [part for message in messages for part in message["content"] if part == MARK]
    if len(marks) != len(images):
        raise Unusable("image count", f"{len(marks)} image tags in the text, {len(images)} images")
    for mark, image in zip(marks, images, strict=True):
        mark["image"] = image
    kept = {key: fields[key] for key in ("slice", "split") if fields.get(key) is not None}
    name = fields.get("id")
    return {"id": None if name is None else str(name), "messages": messages, **kept}


def _turns(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    key, speaker, said = (
        ("conversations", "from", "value") if "conversations" in fields else ("messages", "role", "content")
    )
    if fields.get("system"):
        yield "system", fields["system"]
    for turn in _rows(fields.get(key)):
        role = turn.get(speaker)
        if not isinstance(role, str) or role not in ROLES:
            raise Unusable("unknown role", f"{role}; known are {', '.join(ROLES)}")
        yield ROLES[role], turn.get(said)


def _rows(turns: Any) -> list[dict[str, Any]]:
    if isinstance(turns, dict) and all(isinstance(column, list) for column in turns.values()):
        # `datasets` stored a sequence of objects as an object of sequences, until its version 4.
        turns = [dict(zip(turns, values, strict=False)) for values in zip(*turns.values(), strict=False)]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unusable("wrong fields", "conversations (or messages) must be a list of turns")
    return turns


def _images(fields: dict[str, Any]) -> list[str | bytes]:
    found = fields.get("images", fields.get("image"))
    images = found if isinstance(found, list) else [] if found is None else [found]
    return [_reference(image) for image in images]


def _reference(image: Any) -> str | bytes:
    """A path, or what `datasets` and ms-swift keep of an image: its bytes, else its path."""
    found = (image.get("bytes") or image.get("path")) if isinstance(image, dict) else image
    if not isinstance(found, str | bytes) or not found:
        raise Unusable("wrong fields", "an image must be a path, or an object with bytes or path")
    return found


def _parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a turn; an image that stands beside the text leaves a mark."""
    if isinstance(content, str):
        first, *rest = content.split(TAG)
        pieces: list[dict[str, Any]] = [{"type": "text", "text": first}]
        for text in rest:
            pieces += [dict(MARK), {"type": "text", "text": text}]
        return [piece for piece in pieces if piece.get("text") != ""] or pieces
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Unusable("wrong fields", "a turn's content must be text or a list of parts")
    return [{key: value for key, value in part.items() if value is not None} for part in content]
