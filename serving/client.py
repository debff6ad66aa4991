"""The calls of an OpenAI-compatible server that we use.

Errors: Unreachable when no answer came, EngineFailed when the answer is not one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pipelines.errors import EngineBusy, EngineFailed, Unreachable
from serving.said import Completion, Models, Read, Token, said

ENGINE = "the engine"
JSON = {"Content-Type": "application/json"}
LOST = ("abort", "error")
"""Reasons by which an engine finishes a request that was not answered."""

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

    kv_usage: float
    """Of the KV cache, 0 to 1."""

    preemptions: int
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
            EngineFailed: It refuses the question, as one that is too long, or fails, or what it sends is no answer.
            EngineBusy: Its queue is full.
            Unreachable: No answer came.
        """
        body = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        # Megabytes of images: here they would hold up the answers that others wait for, whose clocks run.
        content = await asyncio.to_thread(_encoded, body | ({"stop": list(stop)} if stop else {}))
        began = time.monotonic()
        try:
            response = await self._http.post("/v1/chat/completions", content=content, headers=JSON)
        except httpx.HTTPError as error:
            raise Unreachable(ENGINE, self.url, repr(error)) from None
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise EngineBusy(f"{self.url} is busy: {response.text[:300]}")
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise EngineFailed(
                f"the engine refuses the question: {response.text[:300]}; shorten it, show fewer or smaller images, or "
                f"raise serving.max_model_len"
            )
        completion = said(response, Completion)
        choice, usage = completion.choices[0], completion.usage
        return Reply(
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            seconds=time.monotonic() - began,
            request_bytes=len(content),
            prompt_tokens=usage.prompt_tokens if usage else None,
            answer_tokens=usage.completion_tokens if usage else None,
        )


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


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
    told = said(response, Read)
    if not told.prompt_token_ids or not told.prompt_logprobs:
        raise EngineFailed(f"{url} told no probabilities of the prompt's tokens; is this the vLLM that we test with?")
    return Reading(told.prompt_token_ids, tuple(map(_prediction, told.prompt_logprobs)))


def _prediction(told: dict[int, Token] | None) -> Prediction | None:
    if told is None:
        return None
    logprobs = {token: each.logprob for token, each in told.items()}
    return Prediction(logprobs, {token: each.rank for token, each in told.items()})


def healthy(url: str, patience: float = QUICK) -> bool:
    """Whether it says that it is."""
    try:
        return _get(f"{url}/health", patience).status_code == httpx.codes.OK
    except Unreachable:
        return False


def served_names(url: str) -> tuple[str, ...]:
    """The model names that it answers to."""
    return tuple(model.id for model in said(_get(f"{url}/v1/models"), Models).data)


def metrics(url: str, patience: float = QUICK) -> Metrics:
    """What it counts now; of several engines behind one address, the sums and the fullest cache.

    Args:
        url: Of the engine.
        patience: Seconds for the answer: an engine under full load may be slow to tell.

    Raises:
        EngineFailed: A count is missing: an unknown is never taken for zero.
        Unreachable: No answer came.
    """
    counts = _counts(f"{url}/metrics", patience)
    try:
        return Metrics(
            running=int(sum(counts["vllm:num_requests_running:"])),
            waiting=int(sum(counts["vllm:num_requests_waiting:"])),
            lost=int(sum(sum(counts[f"vllm:request_success_total:{reason}"]) for reason in LOST)),
            kv_usage=max(counts["vllm:kv_cache_usage_perc:"]),
            preemptions=int(sum(counts["vllm:num_preemptions_total:"])),
            started=max(counts["process_start_time_seconds:"]),
        )
    except KeyError as missing:
        raise EngineFailed(f"{url}/metrics has no {missing}; is this the vLLM that we test with?") from None


def _counts(url: str, patience: float) -> dict[str, list[float]]:
    """By name and reason to finish, one of each engine."""
    text = _get(url, patience).text
    try:
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except ValueError:
        raise EngineFailed(f"{url} tells no metrics: {text[:300]}; is this the vLLM that we test with?") from None
    counts: dict[str, list[float]] = {}
    for sample in samples:
        counts.setdefault(f"{sample.name}:{sample.labels.get('finished_reason', '')}", []).append(sample.value)
    return counts


def command(url: str, path: str, seconds: float, body: object = None) -> None:
    """Call one of vLLM's own endpoints, which change an engine instead of asking it.

    Args:
        path: With its query.
        seconds: For the answer.
        body: Sent as JSON.

    Raises:
        EngineFailed: It says that it did not do so.
        Unreachable: No answer came.
    """
    try:
        response = httpx.post(f"{url}{path}", json=body, timeout=seconds, trust_env=False, verify=_no_certificates())
    except httpx.HTTPError as error:
        raise Unreachable(ENGINE, f"{url}{path}", repr(error)) from None
    if response.status_code != httpx.codes.OK:
        raise EngineFailed(f"{url}{path} answered {response.status_code}: {response.text[:300]}")
    told = response.json() if response.headers.get("Content-Type", "").startswith("application/json") else None
    if isinstance(told, dict) and told.get("success") is False:
        raise EngineFailed(f"{url}{path} was not done: {response.text[:300]}")


def _get(url: str, patience: float = QUICK) -> httpx.Response:
    try:
        return httpx.get(url, timeout=patience, trust_env=False, verify=_no_certificates())
    except httpx.HTTPError as error:
        raise Unreachable(ENGINE, url, repr(error)) from None


def _no_certificates() -> ssl.SSLContext:
    """A context that trusts nobody: all is plain HTTP on loopback, and reading the usual certificates takes 20 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
