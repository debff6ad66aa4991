"""Ask what serves about an image, through the front: `python -m serving.ask IMAGE QUESTION`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from pipelines.errors import DONE, BadInput, VlmopsError
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from serving.client import Client
from serving.questions import encode
from serving.served import read_served

MAX_TOKENS = 256


def ask(settings: Settings, image: Path, question: str) -> str:
    """The answer of whatever serves.

    Raises:
        BadInput: There is no such image, or nothing was ever promoted.
        Unreachable: The front does not answer.
        EngineFailed: It answers with an error.
    """
    if not image.is_file():
        raise BadInput(f"{image}: no such image")
    now = read_served(settings)
    if now is None:
        raise BadInput("no version was promoted yet; `vlmops promote` lets one serve")
    content = [encode({"type": "image", "image": image.name}, image.parent), {"type": "text", "text": question}]
    limit = min(MAX_TOKENS, now.serving.max_model_len // 2)
    return asyncio.run(_ask(settings, now.serving.name, [{"role": "user", "content": content}], limit))


async def _ask(settings: Settings, name: str, messages: list[dict[str, object]], limit: int) -> str:
    async with Client(settings.front_url, key=credential(settings.state, "front_key")) as client:
        return (await client.ask(name, messages, limit)).text


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.ask", description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("question")
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(ask(Settings(), args.image, args.question) + "\n")
    except VlmopsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return DONE


if __name__ == "__main__":
    sys.exit(main())
