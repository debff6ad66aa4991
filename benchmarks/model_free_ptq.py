"""llm-compressor's model-free W8A8 of a published checkpoint: what benchmarks/export.py compares ours with.

It rounds file by file without building the model, as our export does. Left alone it takes stacks of experts for
[experts, out, in], which published ones are not: it cuts them across, exits with 0, and no engine can read the result.
The converter below turns them first; then its tensors are ours, names, shapes and scales alike.

usage: .venv-quantize/bin/python benchmarks/model_free_ptq.py CHECKPOINT OUT [--threads 1]
Prints one line of JSON: seconds, and the most resident memory that it had, in GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.entrypoints.convert import Converter
from llmcompressor import model_free_ptq
from loguru import logger

IGNORE = ("re:.*lm_head", "re:.*visual.*", r"re:.*mlp\.gate$", "re:.*embed_tokens")
"""Left in bf16, as in our own export."""


class OutputsFirst(Converter):
    """Turns stacks of experts from [experts, in, out] to [experts, out, in]."""

    def __init__(self, text: dict[str, Any]) -> None:
        """Tell them by the widths of a model's text config."""
        self.inputs = {"gate_up_proj": text["hidden_size"], "down_proj": text.get("moe_intermediate_size")}

    def get_dependencies(self, _weight_name: str) -> set[str]:
        """A stack is turned by itself."""
        return set()

    def process(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn those of one file; they may be shapes without data."""
        return {name: self._turned(name, tensor) for name, tensor in tensors.items()}

    def update_config(self, config: Any) -> Any:
        """The rounding alone decides what config.json says."""
        return config

    def _turned(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        leaf = name.rpartition(".experts.")[2]
        if leaf not in self.inputs or tensor.shape[1] != self.inputs[leaf]:
            return tensor
        return tensor.transpose(1, 2).contiguous()


def main() -> None:
    """Round, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logger.remove()  # it would print among our output
    config = json.loads((options.checkpoint / "config.json").read_text())
    began = time.monotonic()
    model_free_ptq(
        options.checkpoint,
        options.out,
        scheme="W8A8",
        ignore=IGNORE,
        device=options.device,
        converter=OutputsFirst(config.get("text_config", config)),
    )
    seconds = time.monotonic() - began
    rss_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "rss_gib": rss_gib}))


if __name__ == "__main__":
    main()
