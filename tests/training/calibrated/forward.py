"""A merged model as llm-compressor loads and traces it: `python forward.py MODEL ROWS OUT`, in its environment.

Writes for each row its logits, and what reaches the last decoder layer's MLP: by the model itself, and by the parts
that llm-compressor has cut it into with the first row.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.offload import set_onload_device
from llmcompressor.args import DatasetArguments
from llmcompressor.pipelines.sequential.helpers import trace_subgraphs
from llmcompressor.utils.helpers import calibration_forward_context
from llmcompressor.utils.pytorch.module import infer_sequential_targets
from safetensors.torch import load_file, save_file

from training.calibrated.oneshot import load


def main(folder: Path, rows: list[Path], out: Path) -> None:
    model = load(folder)
    reached: list[torch.Tensor] = []
    model.model.language_model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: reached.append(args[0]))
    set_onload_device(model, torch.device("cpu"))
    ignore = DatasetArguments().tracing_ignore
    parts = trace_subgraphs(model, load_file(rows[0]), infer_sequential_targets(model), ignore, 1)
    reached.clear()
    results: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for file in rows:
            row = load_file(file)
            results[f"{file.stem}.logits"] = model(**row).logits
            with calibration_forward_context(model):  # which leaves out the head, and rounds otherwise
                model(**row)
                by_parts(model, parts, row)
            results |= {f"{file.stem}.model": reached[-2].clone(), f"{file.stem}.parts": reached[-1].clone()}
    save_file(results, out)


def by_parts(model: Any, parts: list[Any], row: dict[str, Any]) -> None:
    values = dict(row)
    for part in parts:
        values |= part.forward(model, **{name: values[name] for name in part.input_names}) or {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.safetensors")), Path(sys.argv[3]))
