"""The calls of an OpenAI-compatible server that we use.

Errors: Unreachable when no answer came, EngineFailed when the answer is not one.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import EngineFailed, Unreachable

ENGINE = "the engine"
JSON = {"Content-Type": "application/json"}
QUICK = 30.0
"""Seconds for a connection, and for calls that compute nothing: ample, an overloaded machine must lose no request."""


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    finish_reason: str
    seconds: float
    request_bytes: int
    """Of the request's body, images included."""

    prompt_tokens: int | None
    """As the engine counts them, visual ones included. None: it does not say."""

    answer_tokens: int | None


@dataclass(frozen=True)
class Prediction:
    """What the engine expects in the place of one token, given those before it."""

    logprobs: dict[int, float]
    """By token: of the likeliest ones, and of the one that stands there; nats."""

    ranks: dict[int, int]
    """Of the same, 1 is the likeliest."""


@dataclass(frozen=True)
class Reading:
    """A conversation as the engine reads it."""

    token_ids: tuple[int, ...]
    """An image as its visual tokens."""

    predictions: tuple[Prediction | None, ...]
    """One for each token; None for the first, before which there is nothing."""


@dataclass(frozen=True)
class Metrics:
    """What the engine counts."""

    running: int
    waiting: int
    lost: int
    """Requests that ended in an abort or an error since it was started."""

    started: float
    """Start of its process, in seconds since 1970: another engine has another."""

    @property
    def in_flight(self) -> int:
        """Requests that it has not finished."""
        return self.running + self.waiting


class Client:
    """Asks questions, many at a time."""

    def __init__(self, url: str, *, key: str | None = None, timeout_seconds: float = 600) -> None:
        self.url = url
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A server closes idle connections after 5 s: one that is used again just then would lose its request.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            limits=limits,
            timeout=httpx.Timeout(timeout_seconds, connect=QUICK),
            trust_env=False,  # a proxy of the machine has no business on loopback
            verify=_no_certificates(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(
        self, model: str, messages: Sequence[dict[str, Any]], max_tokens: int, stop: Sequence[str] = ()
    ) -> Reply:
        """The greedy answer to a conversation.

        Args:
            messages: In OpenAI's form, images as data URLs.
            stop: Texts that end the answer and are no part of it.

        Raises:
            EngineFailed: It refuses the question, as one that is too long, or fails.
            Unreachable: No answer came.
        """
        body = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        content = json.dumps(body | ({"stop": list(stop)} if stop else {})).encode()
        began = time.monotonic()
        try:
            response = await self._http.post("/v1/chat/completions", content=content, headers=JSON)
        except httpx.HTTPError as error:
            raise Unreachable(ENGINE, self.url, repr(error)) from None
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise EngineFailed(
                f"the engine refuses the question: {response.text[:300]}; shorten it, show fewer or smaller images, or "
                f"raise serving.max_model_len"
            )
        reply = _json(response)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        return Reply(
            text=choice["message"]["content"] or "",
            finish_reason=choice["finish_reason"],
            seconds=time.monotonic() - began,
            request_bytes=len(content),
            prompt_tokens=usage.get("prompt_tokens"),
            answer_tokens=usage.get("completion_tokens"),
        )


def read(url: str, model: str, messages: Sequence[dict[str, Any]], top: int) -> Reading:
    """Let the engine read a conversation, answers included, and tell what it would have expected at each token.

    Args:
        messages: In OpenAI's form, images as data URLs.
        top: How many of the likeliest tokens are told.
    """
    body = {
        "model": model,
        "messages": list(messages),
        "max_tokens": 1,
        "temperature": 0,
        "add_generation_prompt": False,
        "prompt_logprobs": top,
        "return_token_ids": True,
    }
    try:
        response = httpx.post(
            f"{url}/v1/chat/completions", json=body, timeout=600, trust_env=False, verify=_no_certificates()
        )
    except httpx.HTTPError as error:
        raise Unreachable(ENGINE, url, repr(error)) from None
    reply = _json(response)
    if not reply.get("prompt_token_ids") or not reply.get("prompt_logprobs"):
        raise EngineFailed(f"{url} told no probabilities of the prompt's tokens; is this the vLLM that we test with?")
    return Reading(tuple(reply["prompt_token_ids"]), tuple(map(_prediction, reply["prompt_logprobs"])))


def _prediction(told: dict[str, dict[str, Any]] | None) -> Prediction | None:
    if told is None:
        return None
    logprobs = {int(token): float(each["logprob"]) for token, each in told.items()}
    return Prediction(logprobs, {int(token): int(each["rank"]) for token, each in told.items()})


def healthy(url: str) -> bool:
    """Whether it says that it is."""
    try:
        return _get(f"{url}/health").status_code == httpx.codes.OK
    except Unreachable:
        return False


def served_names(url: str) -> tuple[str, ...]:
    """The model names that it answers to."""
    return tuple(model["id"] for model in _json(_get(f"{url}/v1/models"))["data"])


def metrics(url: str) -> Metrics:
    """What it counts now.

    Raises:
        EngineFailed: A count is missing: an unknown is never taken for zero.
    """
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(_get(f"{url}/metrics").text):
        for sample in family.samples:
            name = f"{sample.name}:{sample.labels.get('finished_reason', '')}"
            counts[name] = counts.get(name, 0) + sample.value
    try:
        return Metrics(
            running=int(counts["vllm:num_requests_running:"]),
            waiting=int(counts["vllm:num_requests_waiting:"]),
            lost=int(counts["vllm:request_success_total:abort"] + counts["vllm:request_success_total:error"]),
            started=counts["process_start_time_seconds:"],
        )
    except KeyError as missing:
        raise EngineFailed(f"{url}/metrics has no {missing}; is this the vLLM that we test with?") from None


def _get(url: str) -> httpx.Response:
    try:
        return httpx.get(url, timeout=QUICK, trust_env=False, verify=_no_certificates())
    except httpx.HTTPError as error:
        raise Unreachable(ENGINE, url, repr(error)) from None


def _json(response: httpx.Response) -> Any:
    if response.status_code != httpx.codes.OK:
        raise EngineFailed(f"{response.url} answered {response.status_code}: {response.text[:300]}")
    return response.json()


def _no_certificates() -> ssl.SSLContext:
    """A context that trusts nobody: all is plain HTTP on loopback, and reading the usual certificates takes 20 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
