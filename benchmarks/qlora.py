"""QLoRA steps at the exact shape of Qwen3-VL-30B-A3B on one GPU: ours, and what else there is, one process each.

    ours                    NF4 experts, LoRA on attention and experts (rank 16)     capped at 48 GiB
    ours-attention          the same base, LoRA on attention only                    capped at 48 GiB
    unsloth                 the same with unsloth, where it is installed             capped at 48 GiB
    peft-bf16               bf16 experts, PEFT's LoRA on attention and experts       uncapped: 73 GiB at 48 layers
    peft-bf16-attention     bf16, PEFT's LoRA on attention only                      uncapped

A row is 1,024 visual and 512 text tokens unless said otherwise; optimizer: paged 8-bit AdamW, gradients clipped.

usage: python benchmarks/qlora.py CHECKPOINT [--variants ours unsloth] [--rows 4] [--image 1024] [--text 512]
       [--steps 8] [--profile FILE]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

CAP_GIB = 48.0
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Loaded:
    """A model ready to train."""

    model: Any
    loss: Any
    """From a batch to a scalar."""

    load_seconds: float
    load_peak_gib: float
    static_gib: float


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    variant: str
    trainable: int
    load_seconds: float
    load_peak_gib: float
    static_gib: float
    first_step_seconds: float
    step_seconds: float
    tokens_per_second: float
    peak_gib: float
    reserved_gib: float


def ours(checkpoint: Path, targets: str) -> Loaded:
    """The product's own path."""
    from training.layers.recompute import checkpoint_layers
    from training.loss import AnswerLoss
    from training.model import attach_lora, load_quantized

    began = time.monotonic()
    model = load_quantized(checkpoint, torch.bfloat16, "cuda")
    static, seconds = _allocated(), time.monotonic() - began
    peak = _peak()
    attach_lora(model, targets, RANK, ALPHA, seed=0)  # type: ignore[arg-type]
    checkpoint_layers(model)
    objective = AnswerLoss(model).train()
    return Loaded(objective, lambda batch: objective(**batch), seconds, peak, static)


def peft_bf16(checkpoint: Path, targets: str) -> Loaded:
    """What stock PEFT does when it does it right: everything in bf16."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    began = time.monotonic()
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.bfloat16, device_map={"": "cuda"}, experts_implementation="grouped_mm"
    )
    static, seconds, peak = _allocated(), time.monotonic() - began, _peak()
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=r".*language_model.*self_attn\.(q|k|v|o)_proj",
        target_parameters=stacks if targets != "attention" else None,
    )
    adapted = get_peft_model(model, config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    adapted.train()
    return Loaded(adapted, lambda batch: adapted(**batch).loss, seconds, peak, static)


def unsloth(checkpoint: Path) -> Loaded:
    """Unsloth as its own notebooks use it."""
    from unsloth import FastVisionModel

    began = time.monotonic()
    model, _ = FastVisionModel.from_pretrained(
        str(checkpoint),
        load_in_4bit=True,
        max_seq_length=4096,
        use_gradient_checkpointing="unsloth",
        dtype=torch.bfloat16,
    )
    static, seconds, peak = _allocated(), time.monotonic() - began, _peak()
    model = FastVisionModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", random_state=0, finetune_vision_layers=False,
        finetune_language_layers=True, finetune_attention_modules=True, finetune_mlp_modules=True,
    )  # fmt: skip
    FastVisionModel.for_training(model)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return model(**batch).loss  # type: ignore[no-any-return]

    return Loaded(model, loss, seconds, peak, static)


VARIANTS = {
    "ours": lambda checkpoint: ours(checkpoint, "attention+experts"),
    "ours-attention": lambda checkpoint: ours(checkpoint, "attention"),
    "unsloth": unsloth,
    "peft-bf16": lambda checkpoint: peft_bf16(checkpoint, "attention+experts"),
    "peft-bf16-attention": lambda checkpoint: peft_bf16(checkpoint, "attention"),
}


def batch(checkpoint: Path, variant: str, rows: int, image: int, text: int) -> dict[str, torch.Tensor]:
    """Random pictures and text, every text token labelled."""
    config = json.loads((checkpoint / "config.json").read_text())
    pad, begin, end = (config[f"{name}_token_id"] for name in ("image", "vision_start", "vision_end"))
    picture = torch.tensor([begin, *[pad] * image, end])
    ids = torch.stack([torch.cat([_text(16), picture, _text(text - 18)]) for _ in range(rows)])
    side = round(image**0.5) * 2
    values = {
        "input_ids": ids,
        "labels": ids.masked_fill(ids == pad, -100),
        "pixel_values": torch.randn(rows * side * side, 3 * 2 * 16 * 16),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }
    if variant.startswith("ours"):
        values["position_ids"] = _places(checkpoint, ids, values["image_grid_thw"], pad)
    else:
        values |= {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == pad).int()}
    return {name: value.cuda() for name, value in values.items()}


def _places(checkpoint: Path, ids: torch.Tensor, grid: torch.Tensor, pad: int) -> torch.Tensor:
    from transformers import AutoConfig, Qwen3VLMoeModel

    with torch.device("meta"):
        model = Qwen3VLMoeModel(AutoConfig.from_pretrained(checkpoint))
    return model.get_rope_index(input_ids=ids, mm_token_type_ids=(ids == pad).int(), image_grid_thw=grid)[0]


def _text(count: int) -> torch.Tensor:
    return torch.randint(0, 400, (count,))


def measure(variant: str, checkpoint: Path, size: tuple[int, int, int], steps: int, profile: Path | None) -> Measured:
    """Load, train a few steps, and say what it took."""
    torch.manual_seed(0)
    if "bf16" not in variant:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total))
    loaded = VARIANTS[variant](checkpoint)
    parameters = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = _optimizer(variant)(parameters, lr=1e-4)
    inputs = batch(checkpoint, variant, *size)
    gc.freeze()
    torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        began = time.monotonic()
        loss = loaded.loss(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds = time.monotonic() - began
        print(f"{variant}: loss {float(loss.detach()):.3f}, {seconds:.3f} s, peak {_peak():.2f} GiB", flush=True)
        return seconds

    first, *rest = [step() for _ in range(steps)]
    median = statistics.median(rest[1:])
    if profile:
        _profile(step, profile)
    return Measured(
        variant=variant,
        trainable=sum(p.numel() for p in parameters),
        load_seconds=loaded.load_seconds,
        load_peak_gib=loaded.load_peak_gib,
        static_gib=loaded.static_gib,
        first_step_seconds=first,
        step_seconds=median,
        tokens_per_second=inputs["input_ids"].numel() / median,
        peak_gib=_peak(),
        reserved_gib=torch.cuda.max_memory_reserved() / 2**30,
    )


def _optimizer(variant: str) -> Any:
    if variant.startswith("ours"):
        from training.loop.optimizer import PagedAdamW8bit
    else:
        from bitsandbytes.optim import PagedAdamW8bit
    return PagedAdamW8bit


def _profile(step: Any, file: Path) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        step()
    for key in ("self_cuda_time_total", "self_cpu_time_total"):
        table = trace.key_averages().table(sort_by=key, row_limit=60, max_name_column_width=90)
        file.with_suffix(f".{key}.txt").write_text(table)
    trace.export_chrome_trace(str(file.with_suffix(".json.gz")))


def matmul_rate() -> float:
    """What the card really does in bf16: FLOP/s of a large product of random matrices."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ b
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000)


def active_parameters(checkpoint: Path) -> int:
    """Weights that a text token meets: attention, its experts, router, head."""
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"] + text["num_key_value_heads"]
    attention = 2 * hidden * heads * text["head_dim"]
    experts = 3 * text["num_experts_per_tok"] * hidden * text["moe_intermediate_size"]
    layer = attention + experts + hidden * _experts(text)
    return int(text["num_hidden_layers"] * layer + text["vocab_size"] * hidden)


def _experts(text: dict[str, Any]) -> int:
    return int(text.get("num_experts") or text["num_local_experts"])


COLUMNS = ("trainable M", "load s", "GB/s", "load peak GiB", "static GiB", "first step s", "s/step", "tokens/s")


def report(results: list[Measured], checkpoint: Path, tokens: int) -> None:
    """The table, ratios to the first line, and the share of the roofline."""
    ideal = 3 * 2 * active_parameters(checkpoint) * tokens / matmul_rate()
    size = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) / 1e9
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {tokens} tokens a step, {size:.1f} GB on disk")
    print("| variant | " + " | ".join(COLUMNS) + " | of roofline | peak GiB |\n" + "|---" * 11 + "|")
    for line in results:
        cells = (
            f"{line.trainable / 1e6:.1f}", f"{line.load_seconds:.1f}", f"{size / line.load_seconds:.2f}",
            f"{line.load_peak_gib:.2f}", f"{line.static_gib:.2f}", f"{line.first_step_seconds:.1f}",
            f"{line.step_seconds:.3f}", f"{line.tokens_per_second:,.0f}", f"{ideal / line.step_seconds:.0%}",
            f"{line.peak_gib:.2f}",
        )  # fmt: skip
        print(f"| {line.variant} | " + " | ".join(cells) + " |")
    for line in results[1:]:
        ratio = results[0].tokens_per_second / line.tokens_per_second
        print(f"{results[0].variant} / {line.variant}: {ratio:.2f} x tokens/s")


def _allocated() -> float:
    return torch.cuda.memory_allocated() / 2**30


def _peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--image", type=int, default=1024, help="visual tokens a row, a square number")
    parser.add_argument("--text", type=int, default=512, help="text tokens a row")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", type=Path, help="where the first variant's profile goes")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure each variant in a process of its own and print the table."""
    options = _parser().parse_args()
    size = (options.rows, options.image, options.text)
    if options.alone:
        [variant] = options.variants
        result = measure(variant, options.checkpoint, size, options.steps, options.profile)
        print("RESULT", json.dumps(asdict(result)), flush=True)
        return
    results = []
    for variant in options.variants:
        if variant == "unsloth" and importlib.util.find_spec("unsloth") is None:
            sys.exit("unsloth is not installed")
        arguments = [sys.executable, __file__, str(options.checkpoint), "--alone", "--variants", variant]
        for name in ("rows", "image", "text", "steps"):
            arguments += [f"--{name}", str(getattr(options, name))]
        if options.profile and not results:
            arguments += ["--profile", str(options.profile)]
        child = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
        print(child.stdout, end="")
        lines = [line for line in child.stdout.splitlines() if line.startswith("RESULT ")]
        if lines:
            results.append(Measured(**json.loads(lines[-1].removeprefix("RESULT "))))
        else:
            print(f"{variant}: ended with {child.returncode}")
    if results:
        report(results, options.checkpoint, options.rows * (options.image + options.text))


if __name__ == "__main__":
    main()
