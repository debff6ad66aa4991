"""The shape of a model: the numbers of its `config.json` that decide how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The vision tower."""

    depth: int
    hidden: int
    intermediate: int
    patch_values: int
    """Numbers in one patch: channels x frames x pixels."""

    positions: int
    """Rows of the position table."""

    merge: int
    """Patches that become one token: this squared."""

    out: int
    """Width of what it hands to the language model."""

    deepstack: int
    """Layers of the tower whose features are handed on beside the last one's."""

    @property
    def patches_per_token(self) -> int:
        """Patches that become one visual token."""
        return self.merge**2


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A Qwen3-VL model, a mixture of experts or dense."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int
    """Experts per layer; 0 for a dense model."""

    experts_per_token: int
    """1 for a dense model: every token goes through the one MLP."""

    width: int
    """Intermediate width of one expert, or of the MLP."""

    tied: bool
    """Whether the head is the embedding."""

    longest: int
    """Tokens that the position embedding reaches."""

    vision: VisionShape

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """Attention of one layer: (in, out) of query, key, value and output."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)

    @property
    def stacks(self) -> tuple[tuple[int, int], ...]:
        """One expert, or the MLP: (in, out) of gate and up together, and of down."""
        return (self.hidden, 2 * self.width), (self.width, self.hidden)


def read_shape(config: dict[str, Any], name: str) -> ModelShape:
    """The shape by a model's config.json.

    Args:
        config: Its content.
        name: Of the file, for the error.

    Raises:
        BadInput: A number is missing, or the layers differ in a way that is not planned for.
    """
    try:
        shape = _shape(config["text_config"], _vision(config["vision_config"]))
    except KeyError as error:
        raise BadInput(f"{name}: no {error} in it, which a Qwen3-VL model has; plan from the published file") from None
    text = config["text_config"]
    if shape.experts and (text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1):
        raise BadInput(f"{name}: some layers have experts and some have none, and only models of one kind are planned")
    return shape


def _shape(text: dict[str, Any], vision: VisionShape) -> ModelShape:
    experts = text.get("num_experts") or text.get("num_local_experts") or 0
    return ModelShape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        vocabulary=text["vocab_size"],
        experts=experts,
        experts_per_token=text["num_experts_per_tok"] if experts else 1,
        width=text["moe_intermediate_size"] if experts else text["intermediate_size"],
        tied=text.get("tie_word_embeddings", False),
        longest=text["max_position_embeddings"],
        vision=vision,
    )


def _vision(vision: dict[str, Any]) -> VisionShape:
    channels = vision.get("in_channels", 3)  # published files leave it out
    return VisionShape(
        depth=vision["depth"],
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        patch_values=channels * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
        positions=vision["num_position_embeddings"],
        merge=vision["spatial_merge_size"],
        out=vision["out_hidden_size"],
        deepstack=len(vision["deepstack_visual_indexes"]),
    )
