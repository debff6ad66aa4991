"""Does every exported scheme load in vLLM, and does it answer like the merged model? All engines start at once.

usage: python benchmarks/serve_schemes.py MERGED_BF16 EXPORTED... [--questions 60] [--adapter DIR --adapter-base BASE]

The models are exports of one fine-tuned built-in base; the questions are drawn pictures. The merged model is served in
float16 too. With an adapter, as
`vlmops export --adapter-only` writes it, its base is served in bf16 with the adapter beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MEMORY_SHARE, KV_BYTES = 0.1, 2**30
"""Of the card: the models are tiny, the kernels are what is tried. A cache of a fixed size, because what is free on a
card that others start on at the same time cannot be measured."""


def serve(model: Path, questions: int, adapter: Path | None, dtype: str) -> dict[str, Any]:
    """Load one model and ask everything."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from training.builtin.drawings import draw_many

    began = time.monotonic()
    loras: dict[str, Any] = {}
    if adapter:
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
        loras = {"enable_lora": True, "max_lora_rank": max(8, rank)}
    llm = LLM(
        model=str(model),
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=16,
        enforce_eager=True,
        gpu_memory_utilization=MEMORY_SHARE,
        kv_cache_memory_bytes=KV_BYTES,
        limit_mm_per_prompt={"image": 1, "video": 0},
        **loras,
    )
    ready = time.monotonic() - began
    drawings = draw_many(dict.fromkeys(("printed", "colours", "shapes"), questions // 3), seed=11)
    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
    asked = [{"prompt": prompt.format(one.question), "multi_modal_data": {"image": one.image}} for one in drawings]
    request = LoRARequest("adapter", 1, str(adapter), is_3d_lora_weight=True) if adapter else None
    sampling = SamplingParams(temperature=0, max_tokens=12)
    found = llm.generate(asked, sampling, use_tqdm=False, lora_request=request)
    answers = [one.outputs[0].text.strip() for one in found]
    right = sum(answer == one.answer for answer, one in zip(answers, drawings, strict=True))
    return {"ready": ready, "answers": answers, "right": right}


def main() -> None:
    """Serve all, compare with the first, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="the merged bf16 model first")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--adapter-base", type=Path)
    parser.add_argument("--dtype", default="bfloat16", help="for --one")
    parser.add_argument("--one", action="store_true", help="serve the one model here and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(serve(options.models[0], options.questions, options.adapter, options.dtype)))
        return
    table = Table(title="exports of one model in vLLM")
    for column in ("model", "ready after s", "right", "answers like the merged model", "error"):
        table.add_column(column)
    jobs = [(model, None, "bfloat16") for model in options.models]
    jobs += [(options.models[0], None, "float16")]
    jobs += [(options.adapter_base, options.adapter, "bfloat16")] if options.adapter else []
    merged: list[str] = []
    with ThreadPoolExecutor(len(jobs)) as pool:
        done = list(pool.map(lambda job: _apart(options.questions, *job), jobs))
    for (model, adapter, dtype), (found, error) in zip(jobs, done, strict=True):
        merged = merged or found.get("answers", [])
        same = sum(a == b for a, b in zip(found.get("answers", []), merged, strict=False))
        name = f"{model.name} + adapter" if adapter else model.name
        name += " in float16" if dtype == "float16" else ""
        ready, right = found.get("ready", float("nan")), found.get("right", 0)
        table.add_row(name, f"{ready:.0f}", f"{right} of {options.questions}", f"{same} of {len(merged)}", error)
    Console(width=150).print(table)


def _apart(questions: int, model: Path, adapter: Path | None, dtype: str) -> tuple[dict[str, Any], str]:
    """In a process of its own, so that the card is free again."""
    command = [sys.executable, __file__, str(model), "--one", "--questions", str(questions), "--dtype", dtype]
    command += ["--adapter", str(adapter)] if adapter else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {}, done.stderr.strip().splitlines()[-1][:90]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, ""


if __name__ == "__main__":
    main()
