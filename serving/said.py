"""What an OpenAI-compatible server sends, as far as we need it; there may be more in it."""

from __future__ import annotations

from typing import TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from pipelines.errors import EngineFailed

Said = TypeVar("Said", bound=BaseModel)


class Message(BaseModel):
    """What the model wrote."""

    content: str | None


class Choice(BaseModel):
    """An answer."""

    message: Message
    finish_reason: str


class Usage(BaseModel):
    """Tokens, if it tells them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """A conversation that was answered."""

    choices: tuple[Choice, ...] = Field(min_length=1)
    usage: Usage | None = None


class Token(BaseModel):
    """One that was expected."""

    logprob: float
    """Nats."""

    rank: int


class Read(BaseModel):
    """A conversation that was read."""

    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[dict[int, Token] | None, ...] | None = None


class Model(BaseModel):
    """One that is served."""

    id: str


class Models(BaseModel):
    """All of them."""

    data: tuple[Model, ...]


def said(response: httpx.Response, kind: type[Said]) -> Said:
    """What an answer holds: its body may be cut off, or be another server's, whatever its status says.

    Raises:
        EngineFailed: It is none.
    """
    if response.status_code != httpx.codes.OK:
        raise EngineFailed(f"{response.url} answered {response.status_code}: {response.text[:300]}")
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise EngineFailed(f"{response.url} sent what is no answer ({problem}): {response.text[:300]}") from None
