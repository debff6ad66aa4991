"""Ask what serves about an image, through the front: `python -m serving.ask IMAGE QUESTION`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from pipelines.errors import DONE, BadInput, EngineFailed, Unreachable, VlmopsError
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from serving.pictures import shrink
from serving.served import read_served

MAX_TOKENS = 256
ANSWER_SECONDS = 300.0
"""For an answer, after `serving.hold_seconds`: so long a question may be held during a promotion."""

BUSY = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}
MEGABYTE = 1_000_000
Wait = Callable[[float], None]


def ask(settings: Settings, image: Path, question: str, wait: Wait = time.sleep) -> str:
    """The answer of whatever serves.

    Args:
        image: Shrunk to the pixels that the engine looks at before it is sent.
        wait: For the seconds that the front asks for when it is busy; once.

    Raises:
        BadInput: There is no such image, it cannot be shown, it is too large, or nothing was ever promoted.
        Unreachable: The front does not answer.
        EngineFailed: It refuses, is still busy, or its answer is none.
    """
    now = read_served(settings)
    if now is None:
        raise BadInput("no version was promoted yet; `vlmops promote` lets one serve")
    shown = {"type": "image_url", "image_url": {"url": shrink(image, now.images.max_pixels).url}}
    body = {
        "model": now.serving.name,
        "messages": [{"role": "user", "content": [shown, {"type": "text", "text": question}]}],
        "max_tokens": min(MAX_TOKENS, now.serving.max_model_len // 2),
        "temperature": 0,
    }
    return _text(_post(settings, body, now.serving.hold_seconds + ANSWER_SECONDS, wait))


def _post(settings: Settings, body: dict[str, Any], seconds: float, wait: Wait) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential(settings.state, 'front_key')}"}
    address = f"{settings.front_url}/v1/chat/completions"
    try:
        with httpx.Client(headers=headers, timeout=httpx.Timeout(seconds, connect=30), trust_env=False) as client:
            response = client.post(address, json=body)
            later = response.headers.get("Retry-After", "")
            if response.status_code in BUSY and later.isdecimal():
                wait(float(later))
                response = client.post(address, json=body)
    except httpx.HTTPError as error:
        raise Unreachable("the front", settings.front_url, repr(error)) from None
    if response.status_code != httpx.codes.OK:
        raise _refusal(response, settings)
    return response


def _refusal(response: httpx.Response, settings: Settings) -> VlmopsError:
    """What an answer that is none means, and what to do about it."""
    status = response.status_code
    if status in BUSY:
        later = response.headers.get("Retry-After", "some")
        return EngineFailed(
            f"the front answered {status} twice: {_said(response)}; try again in {later} seconds, and see "
            f"`vlmops serving status`"
        )
    if status == httpx.codes.UNAUTHORIZED:
        path = settings.state / "secrets" / "front_key"
        return EngineFailed(
            f"the front does not let in the key of {path}; `vlmops keys list` says why, and `vlmops keys rotate "
            f"default` puts another one there"
        )
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        size = len(response.request.content) / MEGABYTE
        return BadInput(f"the request has {size:.1f} MB, more than serving.body_megabytes; show a smaller image")
    if status == httpx.codes.BAD_REQUEST:
        return BadInput(f"the engine refuses the question: {_said(response)}; shorten it, or show another image")
    return EngineFailed(f"{settings.front_url} answered {status}: {_said(response)}")


def _said(response: httpx.Response) -> str:
    """The message of an error in OpenAI's form, else the beginning of whatever came."""
    if response.headers.get("Content-Type", "").startswith("application/json"):
        error = response.json().get("error")
        if isinstance(error, dict) and "message" in error:
            return str(error["message"])
    return response.text[:300]


def _text(response: httpx.Response) -> str:
    choice = response.json()["choices"][0]
    if choice["finish_reason"] not in {"stop", "length"}:
        raise EngineFailed(f"the answer was not finished: {choice['finish_reason']}; ask again")
    content = choice["message"]["content"]
    if content is None:
        raise EngineFailed("the engine answered without a text; ask again, or otherwise")
    return str(content)


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
