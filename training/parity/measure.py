"""Logits parity of an exported model: base with its adapter, in bf16 and in NF4, against merged and written weights.

Everything is computed in fp32, so that what is measured is what weights and activations were rounded to, and not the
noise of the products. The reference is the base in bf16 with the adapter beside it: what the merge is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from pipelines.parity import GoldenPrompt, Parity
from pipelines.progress import counting
from pipelines.system.durable import write_text
from training.chat.batches import cut
from training.chat.encoding import IGNORE, collate
from training.chat.positions import token_positions
from training.parity.agreement import Comparison
from training.parity.forward import SideBySide
from training.parity.prompts import Prompt, copy_images
from training.parity.variants import Beside, Merged, Original, Trained, Unadapted, Variant, Written

log = logging.getLogger(__name__)

TOKENS = 4096
"""That go through the model together, padding included, for each variant; what is beyond reads the weights again. In
fp32 that is about 3 GB in the vision tower of a 30B, if all of it is pictures, and a few hundred MB if it is not."""

PREDICTIONS = 256
"""Whose logits exist at the same time: 156 MB in fp32 for a vocabulary of 151,936."""

TOP = 20
"""Predictions kept for the comparison with an engine: the most that vLLM tells."""


def measure_parity(
    base: Path,
    adapter: Path | None,
    exported: Path,
    merged: Path | None,
    prompts: Sequence[Prompt],
    *,
    device: str,
    folder: Path,
    beside: Path | None = None,
) -> Parity:
    """Compare what all forms of a model predict in place of the answers, given the right tokens before them.

    Args:
        base: The published checkpoint.
        adapter: What was merged into it; None for the base itself.
        exported: The written model, in any scheme.
        merged: The written bf16 model; None computes the merge here.
        prompts: At least one.
        device: `cpu` or `cuda`.
        folder: Gets `prompts.jsonl` and the images that it names, for the comparison with the served model.
        beside: The adapter as it was written, where it was not merged: then `exported` is the base as it is served.

    Raises:
        ExportRejected: The adapter is none that can be merged.
    """
    began = time.monotonic()
    variants = (
        _variants(base, adapter, exported, merged, device)
        if beside is None
        else (_variants_beside(base, adapter, exported, beside, device))
    )
    ordered = sorted(prompts, key=lambda prompt: len(prompt.row.input_ids), reverse=True)
    runs = cut([len(prompt.row.input_ids) for prompt in ordered], TOKENS)
    comparisons = {name: Comparison() for name in variants if name != "reference"}
    golden: list[GoldenPrompt] = []
    model = SideBySide(base, tuple(variants.values()), device)
    with counting("comparing predictions, layer by layer", len(runs) * len(model.layers)) as tick:
        model.after_each_layer(tick)
        for run in runs:
            golden += _compare(model, ordered[run.start : run.stop], comparisons)
    copy_images(prompts, folder)
    write_text(folder / "prompts.jsonl", "".join(prompt.model_dump_json() + "\n" for prompt in golden))
    found = {name: comparison.agreement() for name, comparison in comparisons.items()}
    for name, agreement in found.items():
        log.info(
            "%s: mean KL %.2e nats, largest %.2e, the same likeliest token at %.2f %% of %d",
            *(name, agreement.mean_kl, agreement.max_kl, 100 * agreement.top1, agreement.positions),
        )
    return Parity(
        golden=folder / "prompts.jsonl",
        prompts=len(prompts),
        images=sum(bool(prompt.images) for prompt in prompts),
        base=found.get("base"),
        nf4=found["nf4"],
        merged=found.get("merged"),
        exported=found["exported"],
        seconds=time.monotonic() - began,
    )


def _variants(base: Path, adapter: Path | None, exported: Path, merged: Path | None, device: str) -> dict[str, Variant]:
    reference = Original(base, adapter, device)
    written = Written(exported, device)
    variants: dict[str, Variant] = {"reference": reference, "nf4": Trained(reference), "exported": written}
    if adapter:
        variants["base"] = Unadapted(reference)
    if written.quantized:
        variants["merged"] = Written(merged, device) if merged else Merged(reference)
    return variants


def _variants_beside(base: Path, adapter: Path | None, served: Path, written: Path, device: str) -> dict[str, Variant]:
    """Where nothing is merged."""
    reference, adapted = Original(base, adapter, device), Original(base, written, device)
    exported = adapted if served == base else Beside(served, adapted)
    return {
        "reference": reference,
        "nf4": Trained(reference),
        "exported": exported,
        "base": Unadapted(reference),
    }


def _compare(model: SideBySide, prompts: Sequence[Prompt], comparisons: dict[str, Comparison]) -> list[GoldenPrompt]:
    """One batch, the reference first."""
    rows = [prompt.row for prompt in prompts]
    inputs = collate(rows, [token_positions(model.model, row) for row in rows], pad=0)
    labelled = inputs.pop("labels") != IGNORE
    hidden = model.hidden(inputs, labelled)
    ids: list[torch.Tensor] = []
    logprobs: list[torch.Tensor] = []
    for block in hidden.split(PREDICTIONS, dim=1):
        predicted = model.logprobs(block)
        reference = next(predicted)
        for comparison, found in zip(comparisons.values(), predicted, strict=True):
            comparison.add(reference, found)
        top = reference.topk(min(TOP, reference.shape[-1]))
        ids += top.indices.cpu()
        logprobs += top.values.cpu()
    tops = iter(zip(ids, logprobs, strict=True))
    return [
        _golden(prompt, list(islice(tops, int(mask.sum())))) for prompt, mask in zip(prompts, labelled, strict=True)
    ]


def _golden(prompt: Prompt, tops: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> GoldenPrompt:
    return GoldenPrompt(
        item=prompt.item,
        messages=tuple(prompt.messages),
        token_ids=tuple(prompt.row.input_ids.tolist()),
        positions=tuple((prompt.row.labels != IGNORE).nonzero()[:, 0].tolist()),
        top_ids=tuple(tuple(ids.tolist()) for ids, _ in tops),
        top_logprobs=tuple(tuple(logprobs.tolist()) for _, logprobs in tops),
    )
