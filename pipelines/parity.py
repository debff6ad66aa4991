"""Whether two models predict the same: what is compared, what was found, and the limits that it must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipelines.artifact import Artifact
from pipelines.config_export import Parity as Limits
from pipelines.errors import ExportRejected
from pipelines.schemes import SCHEMES, Scheme


class Agreement(Artifact):
    """How far the predictions of a model are from those of the reference, over answer tokens given the right ones
    before them.
    """

    mean_kl: float
    """KL divergence of the model from the reference, nats per token."""

    max_kl: float
    """At the worst token: a router that decides otherwise shows here, in bf16 too."""

    top1: float
    """Share of the tokens for which both find the same one the most likely."""

    positions: int
    """Tokens that were compared."""


class Parity(Artifact):
    """Every form that the fine-tuned model takes on its way into service, against the base in bf16 with its adapter
    beside it.
    """

    golden: Path
    """JSONL, one `GoldenPrompt` a line, for the comparison with the served model; images lie beside it."""

    prompts: int
    images: int
    """Prompts that show one."""

    base: Agreement | None
    """The base alone, in bf16: what the adapter changes, to measure the others by. None where there is no adapter."""

    nf4: Agreement
    """What was trained: the base in NF4 with its adapter. Information, not limited."""

    merged: Agreement | None
    """The adapter merged into bf16; None where that is what is exported."""

    exported: Agreement
    """The written files, read as the engine reads them, activations rounded as it rounds them."""

    seconds: float


class GoldenPrompt(BaseModel):
    """A conversation with its answers, and what the reference predicts in their place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: str
    messages: tuple[dict[str, Any], ...]
    """Answers included; image paths are relative to the file's folder."""

    token_ids: tuple[int, ...]
    """All of it, an image as its visual tokens, up to the end token of the last answer."""

    positions: tuple[int, ...]
    """Where in `token_ids` the answers' tokens stand."""

    top_ids: tuple[tuple[int, ...], ...]
    """For each position the tokens that the reference finds most likely there, the likeliest first."""

    top_logprobs: tuple[tuple[float, ...], ...]
    """Theirs, in nats."""


def read_golden_prompts(path: Path) -> tuple[GoldenPrompt, ...]:
    """The prompts in a file."""
    with path.open(encoding="utf-8") as lines:  # not splitlines: JSON leaves other line ends in a text alone
        return tuple(map(GoldenPrompt.model_validate_json, lines))


def require_parity(found: Parity, scheme: Scheme, limits: Limits) -> None:
    """Hold merged and written weights against the limits.

    Args:
        found: What was measured.
        scheme: Of the written weights.
        limits: `export.parity`.

    Raises:
        ExportRejected: One of them is beyond.
    """
    if found.merged is not None:
        require_agreement("merged", found.merged, found.base, SCHEMES["bf16"], limits)
    require_agreement("exported", found.exported, found.base, scheme, limits)


def require_agreement(name: str, found: Agreement, base: Agreement | None, scheme: Scheme, limits: Limits) -> None:
    """Hold the figures of one model against the limits.

    Args:
        name: Of the model that was compared.
        found: Its figures.
        base: Those of the base without the adapter, if there is one.
        scheme: Of the model.
        limits: `export.parity`.

    Raises:
        ExportRejected: Beyond a limit; a NaN is beyond.
    """
    field, most = ("max_kl_int4", limits.max_kl_int4) if scheme.bits == 4 else ("max_kl", limits.max_kl)
    share = limits.max_share * base.mean_kl if base else most
    if found.mean_kl <= most and found.mean_kl <= share and found.top1 >= limits.min_top1:  # false for NaN
        return
    learned = f" and {limits.max_share:g} of the {base.mean_kl:.2g} that the adapter makes (max_share)" if base else ""
    raise ExportRejected(
        f"the {name} model does not predict what the base with its adapter does. Over {found.positions} answer tokens: "
        f"mean KL {found.mean_kl:.3g} nats, largest {found.max_kl:.3g}, allowed are {most:g} ({field}){learned}; the "
        f"same likeliest token at {found.top1:.1%}, needed are {limits.min_top1:.1%} (min_top1). Export again; if the "
        f"figures stay, choose a finer or a calibrated export.scheme, or change the limits in export.parity"
    )
