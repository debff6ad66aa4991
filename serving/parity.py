"""Does the served model predict what the reference did? The same conversations, read by the engine that serves it.

An engine tells the likeliest tokens only. So the divergence is one of coarser distributions, in which all other tokens
are one, and a token that the engine did not tell has the probability of the last one that it told, which is more than
its own. Either makes the figure smaller: what is beyond a limit here is beyond it in truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean

from pipelines.errors import ExportRejected
from pipelines.parity import Agreement, GoldenPrompt, read_golden_prompts
from serving.client import Prediction, read
from serving.questions import encode

TINY = 1e-12
"""Least probability of what is left, where rounding leaves none."""


def served_agreement(url: str, name: str, golden: Path, tick: Callable[[], None]) -> Agreement:
    """Compare an engine with the reference at every answer token of the golden prompts.

    Args:
        url: Of the engine.
        name: Of the model.
        golden: JSONL, as the export step wrote it.
        tick: Called after each prompt.

    Raises:
        EngineFailed: It does not tell probabilities.
        ExportRejected: It cuts a prompt into other tokens than training did.
        Unreachable: It does not answer.
    """
    compared: list[tuple[float, bool]] = []
    for prompt in read_golden_prompts(golden):
        compared += _compare(prompt, _predictions(url, name, prompt, golden.parent))
        tick()
    divergences = [divergence for divergence, _ in compared]
    return Agreement(
        mean_kl=fmean(divergences),
        max_kl=max(divergences),
        top1=fmean(same for _, same in compared),
        positions=len(compared),
    )


def divergence(ids: Sequence[int], logprobs: Sequence[float], told: Prediction) -> float:
    """A lower bound of the KL divergence of an engine from a reference at one token, in nats.

    Args:
        ids: The tokens that the reference finds likeliest.
        logprobs: Theirs, in nats.
        told: By the engine.
    """
    unknown = min(told.logprobs[token] for token, rank in told.ranks.items() if rank <= len(ids))
    known = {token: told.logprobs[token] for token in ids if token in told.logprobs}
    total = sum(math.exp(p) * (p - known.get(token, unknown)) for token, p in zip(ids, logprobs, strict=True))
    rest = 1 - math.fsum(map(math.exp, logprobs))
    told_rest = 1 - math.fsum(map(math.exp, known.values()))
    if rest > TINY:
        total += rest * math.log(rest / max(told_rest, TINY))
    return max(total, 0.0)


def _predictions(url: str, name: str, prompt: GoldenPrompt, folder: Path) -> list[Prediction]:
    """What the engine expects at the answers' tokens."""
    messages = [{**m, "content": [encode(part, folder) for part in m["content"]]} for m in prompt.messages]
    reading = read(url, name, messages, len(prompt.top_ids[0]))
    # After the last answer's end token the template may go on, with a line break.
    if reading.token_ids[: len(prompt.token_ids)] != prompt.token_ids:
        pairs = zip_longest(prompt.token_ids, reading.token_ids)
        place = next(i for i, (trained, served) in enumerate(pairs) if trained != served)
        raise ExportRejected(
            f"{prompt.item}: from token {place} on the engine reads other tokens than training did; tokenizer, chat "
            f"template and pixel limits must be those of training: export again"
        )
    return [told for position in prompt.positions if (told := reading.predictions[position]) is not None]


def _compare(prompt: GoldenPrompt, predictions: Sequence[Prediction]) -> Iterator[tuple[float, bool]]:
    for ids, logprobs, told in zip(prompt.top_ids, prompt.top_logprobs, predictions, strict=True):
        yield divergence(ids, logprobs, told), told.ranks.get(ids[0]) == 1
