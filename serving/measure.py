"""One served model, asked every question. Either all of it is valid, or nothing of it is kept."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.errors import EvaluationInvalid, VlmopsError
from pipelines.evaluation import COMPLETE, Answer
from serving.client import Client, Metrics, metrics
from serving.questions import Question

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Every question answered by one engine."""

    answers: tuple[Answer, ...]
    """In the order of the questions."""

    seconds: float
    """For all of them."""


def measure(
    url: str, name: str, questions: Sequence[Question], *, max_tokens: int, concurrency: int, tick: Callable[[], None]
) -> Measurement:
    """Ask every question once.

    Args:
        max_tokens: Of an answer, where the question does not say.
        tick: Called after each answer.

    Raises:
        EvaluationInvalid: A question was not answered, an answer was cut off, or the engine lost requests or changed.
    """
    try:
        before = metrics(url)
        began = time.monotonic()
        outcomes = asyncio.run(_ask_all(url, name, questions, max_tokens, concurrency, tick))
        seconds = time.monotonic() - began
        after = metrics(url)
    except VlmopsError as error:
        raise EvaluationInvalid(f"the engine's counters could not be read: {error}") from None
    answers = tuple(  # images are hashed and answers scored when the clock has stopped
        _judged(outcome, question)
        for question, outcome in zip(questions, outcomes, strict=True)
        if isinstance(outcome, Answer)
    )
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if objections := [*failures[:3], *invalid(questions, answers, before, after)]:
        raise EvaluationInvalid("; ".join(objections))
    return Measurement(answers, seconds)


async def _ask_all(
    url: str, name: str, questions: Sequence[Question], max_tokens: int, concurrency: int, tick: Callable[[], None]
) -> list[Answer | str]:
    slots = asyncio.Semaphore(concurrency)

    async def answer(question: Question) -> Answer | str:
        async with slots:
            try:
                return await _answer(client, name, question, max_tokens)
            except VlmopsError as error:
                return f"{question.item}: {error}"
            finally:
                tick()

    async with Client(url) as client:
        return await asyncio.gather(*map(answer, questions))


async def _answer(client: Client, name: str, question: Question, max_tokens: int) -> Answer:
    messages = await asyncio.to_thread(question.encoded)  # megabytes; the clocks of others run meanwhile
    reply = await client.ask(name, messages, question.max_tokens or max_tokens, question.stop)
    return Answer(
        item=question.item,
        slice=question.slice,
        expected=question.expected,
        text=reply.text,
        finish_reason=reply.finish_reason,
        seconds=reply.seconds,
        prompt_tokens=reply.prompt_tokens,
        answer_tokens=reply.answer_tokens,
        request_bytes=reply.request_bytes,
    )


def _judged(answer: Answer, question: Question) -> Answer:
    """With its cluster, and with what the scorer of its scenario says."""
    said: dict[str, object] = {"cluster": question.cluster}
    if question.scorer is not None:
        scored = question.scorer.score(answer.text, question.expected)
        said |= {"score": scored.score, "marks": scored.marks}
    return answer.model_copy(update=said)


def invalid(questions: Sequence[Question], answers: Sequence[Answer], before: Metrics, after: Metrics) -> list[str]:
    """Why a measurement says nothing about the model; empty when it is valid."""
    objections = []
    if missing := len({q.item for q in questions} - {a.item for a in answers}):
        objections.append(f"{missing} of {len(questions)} questions have no answer")
    if cut := [answer.item for answer in answers if answer.finish_reason not in COMPLETE]:
        objections.append(f"{len(cut)} answers ended otherwise than by stop or length, first {cut[0]}")
    return [*objections, *counted(after.lost - before.lost, restarted=before.started != after.started)]


def counted(lost: int, *, restarted: bool) -> list[str]:
    """Why a measurement says nothing, by the engine's own counters."""
    objections = [f"the engine counted {lost} aborted or failed requests"] if lost else []
    return [*objections, "the engine was restarted meanwhile"] if restarted else objections


def latency_ms(answers: Sequence[Answer], percentile: int) -> float:
    """A percentile of the seconds that answers took, in milliseconds."""
    seconds = [answer.seconds for answer in answers]
    if len(seconds) == 1:
        return seconds[0] * 1000
    return statistics.quantiles(seconds, n=100, method="inclusive")[percentile - 1] * 1000
