"""What llm-compressor wrote against the merged model it was given, tensor by tensor.

It shifts weights on purpose, so nothing is equal bit for bit; but random experts, another layout, swapped matrices or
scales of other rows are far away. Whether the model still answers as before is for logits to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from pipelines.errors import ExportRejected
from pipelines.schemes import Scheme
from training.int8 import Rounded, is_quantized, packed_name, relative_error, scale_name, unpack
from training.weights.shards import Stored, read_headers

MOST = {8: 0.05, 4: 0.5}
"""The largest relative error by bits; rounding to nearest has about 0.008 and 0.11, two unrelated matrices 1.4."""

NORM = {
    re.compile(r"(.*layers\.\d+)\.self_attn\.[qkv]_proj\.weight"): r"\1.input_layernorm.weight",
    re.compile(r"(.*layers\.\d+)\.mlp\.(?:gate|up)_proj\.weight"): r"\1.post_attention_layernorm.weight",
}
"""Where SmoothQuant may move magnitude between a weight and the norm that feeds it: only their product stays."""


def compare(merged: Path, written: Path, scheme: Scheme) -> list[float]:
    """Check every tensor and return the relative error of each quantised one.

    Args:
        merged: Weights in bf16.
        written: The same in `scheme`.
        scheme: A calibrated one.

    Raises:
        ExportRejected: A tensor is missing or not what it was made from; it is named.
    """
    assert scheme.bits
    before, after = (_by_name(folder) for folder in (merged, written))
    smoothed = {norm for name in before if (norm := _norm(name, scheme))}
    errors = []
    for name, tensor in before.items():
        if not is_quantized(name, tensor.shape):
            if name not in smoothed and not torch.equal(tensor.read(), _stored(after, name).read()):
                raise ExportRejected(f"{written}: {name} is not to be quantised, and has changed; calibrate again")
            continue
        error = _error(before, after, name, scheme)
        if not error <= MOST[scheme.bits]:
            raise ExportRejected(
                f"{written}: {name} is off by {error:.3f} of its norm, and {MOST[scheme.bits]} is the most that "
                f"{scheme.name} may cost; this is not the merged model: report it, and export with another scheme"
            )
        errors.append(error)
    return errors


def _error(before: Mapping[str, Stored], after: Mapping[str, Stored], name: str, scheme: Scheme) -> float:
    exact, rounded = before[name].read().float(), _rounded(after, name, scheme)
    norm = _norm(name, scheme)
    if norm is None:
        return relative_error(exact, rounded)
    product = exact * before[norm].read().float()
    return float((rounded.dequantized() * _stored(after, norm).read().float() - product).norm() / product.norm())


def _rounded(after: Mapping[str, Stored], name: str, scheme: Scheme) -> Rounded:
    scale = _stored(after, scale_name(name)).read()
    if not (torch.isfinite(scale).all() and (scale > 0).all()):
        raise ExportRejected(f"{scale_name(name)} is not finite and positive; calibrate on more rows")
    if scheme.int8_activations:
        return Rounded(_stored(after, name).read(), scale)
    assert scheme.bits
    return Rounded(unpack(_stored(after, packed_name(name)).read(), scheme.bits), scale)


def _norm(name: str, scheme: Scheme) -> str | None:
    """The norm that SmoothQuant folds a weight's scales into; None where it leaves the weight alone."""
    if scheme.method != "smoothquant+gptq":
        return None
    return next((pattern.sub(norm, name) for pattern, norm in NORM.items() if pattern.fullmatch(name)), None)


def _by_name(folder: Path) -> dict[str, Stored]:
    return {tensor.name: tensor for tensor in read_headers(folder)}


def _stored(tensors: Mapping[str, Stored], name: str) -> Stored:
    if name not in tensors:
        raise ExportRejected(f"{name} was not written: this layer is not in the scheme; calibrate again")
    return tensors[name]
