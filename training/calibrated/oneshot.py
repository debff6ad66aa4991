"""Runs llm-compressor on one model: `python -m training.calibrated.oneshot PLAN`, in the environment of its own.

It knows no scheme and no data set of ours: the plan says what to ask for, the rows are encoded already.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from compressed_tensors.utils import patch_attr
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe

Method = Literal["rounding", "gptq", "smoothquant+gptq"]


@dataclass(frozen=True)
class Plan:
    """Everything that decides a calibration."""

    model: str
    """Folder of the merged bf16 model, its experts as separate matrices."""

    rows: str
    """Folder of encoded rows, a safetensors file each."""

    out: str
    """Gets the weights, among other files of llm-compressor's."""

    method: Method
    """`rounding` needs no rows; it is there to compare ours with."""

    groups: dict[str, Any]
    """`config_groups` of compressed-tensors."""

    ignore: list[str]
    """Modules left in bf16."""

    shard_bytes: int
    """Size of one file."""


def main(plan: Plan) -> None:
    """Calibrate and write the weights."""
    model = load(Path(plan.model))
    rows = [load_file(file) for file in sorted(Path(plan.rows).glob("*.safetensors"))]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]  # any sequence will do
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(plan.model),  # else a whole processor is loaded, for nothing
        dataset=loader if plan.method != "rounding" else None,
        recipe=list(modifiers(plan, model)),
        pipeline="sequential" if plan.method != "rounding" else "datafree",
    )
    model.save_pretrained(plan.out, max_shard_size=plan.shard_bytes)


def load(folder: Path) -> PreTrainedModel:
    """The model with a Linear per projection of each expert, its weights mapped from the files.

    `from_pretrained` would find no stack of experts in such files, leave all experts random, and only print a table.
    llm-compressor's own `load_quantizable_moe` wants stacks for this model, holds them twice, and imports torchvision.

    Raises:
        ValueError: A weight is missing, or there is one that the model does not have.
    """
    config = AutoConfig.from_pretrained(folder)
    stack = modeling_qwen3_vl_moe.Qwen3VLMoeTextExperts
    with (
        patch_attr(modeling_qwen3_vl_moe, stack.__name__, LinearExperts2D.get_linear_experts_cls(stack)),
        no_init_weights(),
    ):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    tensors = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    missing, unknown = model.load_state_dict(tensors, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if wrong := [*sorted(set(missing) - tied), *unknown]:
        raise ValueError(f"{folder}: missing or unknown weights: {', '.join(wrong[:4])}")
    model.tie_weights()
    return model.eval()


def modifiers(plan: Plan, model: PreTrainedModel) -> Iterator[Modifier]:
    """What llm-compressor is asked to do, in order."""
    if plan.method == "rounding":
        yield QuantizationModifier(config_groups=plan.groups, ignore=plan.ignore)
        return
    if plan.method == "smoothquant+gptq":
        yield SmoothQuantModifier(smoothing_strength=0.5, mappings=list(smoothed(dict(model.named_modules()))))
    yield GPTQModifier(config_groups=plan.groups, ignore=plan.ignore)


def smoothed(modules: dict[str, torch.nn.Module]) -> Iterator[list[Any]]:
    """[layers, norm that feeds them] of each decoder layer, by name.

    A norm that feeds experts feeds their router too, which is no Linear and stays exact: it is left alone.
    """
    for name in modules:
        if not re.fullmatch(r".*language_model\.layers\.\d+", name):
            continue
        yield [[f"{name}.self_attn.{part}_proj" for part in "qkv"], f"{name}.input_layernorm"]
        if f"{name}.mlp.gate_proj" in modules:
            yield [[f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"], f"{name}.post_attention_layernorm"]


if __name__ == "__main__":
    main(Plan(**json.loads(Path(sys.argv[1]).read_text())))
