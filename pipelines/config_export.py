"""The section `export` of the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pipelines.schemes import Name, Scheme, scheme_of
from pipelines.section import Section

GroupSize = Literal[32, 64, 128]


class Parity(Section):
    """Does the exported model predict what the fine-tuned one does? Limits on what may differ, in the files and as
    served.
    """

    prompts: int = Field(8, ge=0)
    """Evaluation rows with their answers whose predictions are compared. 0 exports unproven: nothing then tells a model
    whose weights are all there and in the wrong places from a right one."""

    max_kl: float = Field(0.05, gt=0)
    """Largest mean KL divergence from the base with its adapter, in nats per answer token. Rounding to INT8 costs well
    below 0.01; weights that are wrong cost several times the limit."""

    max_kl_int4: float = Field(0.2, gt=0)
    """The same where weights have 4 bits: their steps are 16 times as wide."""

    max_share: float = Field(0.5, gt=0)
    """The same KL divergence, at most as this share of what the adapter makes between base and fine-tuned model. At 1
    as much is lost as was learned, however little that is: the adapter may as well be missing."""

    min_top1: float = Field(0.9, ge=0, le=1)
    """Least share of answer tokens for which the same token is the most likely one."""


class Export(Section):
    """What is written for serving."""

    scheme: Name = "int8_w8a8"
    """What attention, MLP and experts are stored as. `int8_w8a8`: INT8 weights per channel, INT8 activations per token.
    `int8_w8a16`, `int4_w4a16`: weights in groups, activations in bf16. `bf16`: a merge only. `gptq_int8`, `gptq_int4`,
    `smoothquant_int8`: the first, the third and the first again, calibrated on training rows by llm-compressor."""

    group_size: GroupSize = 128
    """Inputs of a row that share a scale, where the scheme has groups: smaller is more exact and larger on disk."""

    artifact: Literal["merged", "adapter"] = "merged"
    """What a version is. `merged`: a whole model, the adapter merged into it. `adapter`: the adapter alone, in bf16, on
    the base in the scheme above, which all versions share; a promotion between two of them can swap it in a running
    engine (serving.strategy). Experts need a card, a CPU takes dense models in bf16."""

    calibration_rows: int = Field(128, ge=1)
    """Training rows that a calibrated scheme sees."""

    device: Literal["cpu", "cuda"] | None = None
    """Where weights are merged and rounded. None: `hardware.device`. On the CPU the card can serve meanwhile."""

    keep_merged: bool = False
    """Also write the merged bf16 model, so that the cost of quantisation can be measured answer by answer."""

    max_shard_gb: float = Field(5.0, gt=0)
    """Size of one safetensors file."""

    parity: Parity = Parity()

    @property
    def stored(self) -> Scheme:
        """The scheme with its groups of the size that is asked for."""
        return scheme_of(self.scheme, self.group_size)


def adapter_objections(export: Export, strategy: str, device: str) -> Iterator[str]:
    """Why versions cannot be what `export.artifact` makes them, given how and where they are served; none if they can.

    Args:
        export: The section.
        strategy: `serving.strategy`.
        device: `hardware.device`.
    """
    if export.artifact == "merged":
        if strategy == "adapter":
            yield "serving.strategy adapter swaps adapters on one base; set export.artifact adapter too"
        return
    if strategy == "reload":
        yield "serving.strategy reload swaps whole models, and export.artifact is adapter; set adapter or auto"
    if export.stored.calibrated:
        plain = export.stored.rounded.name
        yield f"export.artifact adapter shares one base, and {export.scheme} is calibrated for each run; set {plain}"
    if export.keep_merged:
        yield "export.keep_merged needs export.artifact merged: an adapter is not merged"
    if device == "cpu" and export.scheme != "bf16":
        yield "export.artifact adapter on a CPU needs export.scheme bf16: its INT8 kernels leave no room for an adapter"
