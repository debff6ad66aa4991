"""Whether a version can fit where it is to be served, before anything is touched: a lower bound, of weights alone."""

from __future__ import annotations

from pipelines.errors import EngineFailed
from serving.served import Served

GIB = 2**30


def require_room(version: Served) -> None:
    """Refuse what cannot start; what passes may still be too large by its activations and its KV cache.

    Raises:
        EngineFailed: Says how much is needed, how much there is, and what to change.
    """
    folders = [version.model] if version.adapter is None else [version.model, version.adapter.path]
    weights = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")) / GIB
    hardware, serving = version.hardware, version.serving
    card = hardware.device == "cuda"
    cache = 0.0 if card else serving.kv_cache_gib
    limit = hardware.memory_gib * (serving.gpu_memory_utilization if card else 1)
    if weights + cache > limit:
        raise EngineFailed(
            f"{version.model} has {weights:.2f} GiB of weights{'' if card else f' and {cache:.2f} GiB of KV cache'}, "
            f"and an engine on {hardware.name} may take {limit:.2f} GiB; export it in fewer bits or serve it on a "
            f"larger device"
        )
