"""The sealed questions: reading them, and turning a row's messages into what an OpenAI-compatible server takes."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import Images
from pipelines.errors import BadInput
from pipelines.scenarios.scorers.scorer import Scorer
from pipelines.system.durable import sha256_file
from pipelines.system.manifest import text_digest

Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A row of `test.jsonl`, of which everything but the last answer is asked, or an item of a scenario pack."""

    item: str
    slice: str
    messages: tuple[Message, ...]
    """As in the row; image paths are relative to `folder`."""

    expected: str
    folder: Path
    scorer: Scorer | None = None
    """Of its scenario; None: exact match decides."""

    max_tokens: int | None = None
    """Longest answer, where it is not that of all others."""

    stop: tuple[str, ...] = ()
    """Texts that end the answer."""

    @property
    def text(self) -> str:
        """All text of the last turn."""
        return "".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of its images, relative to `folder`."""
        parts = (part for message in self.messages for part in message["content"])
        return tuple(part["image"] for part in parts if part["type"] == "image")

    @property
    def cluster(self) -> str | None:
        """Digest of its images' bytes, in order; None where it shows none."""
        digests = [sha256_file(self.folder / image) for image in self.images]
        return text_digest(*digests) if digests else None

    def encoded(self) -> list[Message]:
        """The messages as they are sent, images as data URLs."""
        return [
            {"role": message["role"], "content": [encode(part, self.folder) for part in message["content"]]}
            for message in self.messages
        ]


def read_questions(dataset: Path) -> tuple[Question, ...]:
    """The test questions of a data set.

    Raises:
        BadInput: There is none.
    """
    rows = [json.loads(line) for line in (dataset / "test.jsonl").read_text().splitlines()]
    if not rows:
        raise BadInput(f"{dataset / 'test.jsonl'} holds no question; give the data set a larger data.test_share")
    return tuple(_question(row, dataset) for row in rows)


def _question(row: dict[str, Any], dataset: Path) -> Question:
    *asked, answer = row["messages"]
    expected = "".join(part["text"] for part in answer["content"])
    return Question(row["id"], row["slice"], tuple(asked), expected, dataset)


def encode(part: Message, folder: Path) -> Message:
    """A part of a message, its image as a data URL."""
    if part["type"] != "image":
        return part
    path = folder / part["image"]
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def prompt_digest(model: Path, images: Images, max_tokens: int) -> str:
    """Of what turns a question into tokens and decodes the answer: chat template, pixel limits, greedy decoding."""
    decoding = json.dumps({"temperature": 0, "max_tokens": max_tokens})
    return text_digest(chat_template(model), images.model_dump_json(), decoding)


def chat_template(model: Path) -> str:
    """The chat template in a model's folder.

    Raises:
        BadInput: There is none.
    """
    if (path := model / "chat_template.jinja").is_file():
        return path.read_text()
    names: Sequence[str] = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
    for path in (model / name for name in names):
        if path.is_file() and (template := json.loads(path.read_text()).get("chat_template")):
            return str(template)
    raise BadInput(f"{model} has no chat template; a model without one cannot be asked through the chat API")
