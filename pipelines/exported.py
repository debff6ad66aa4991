"""What the export step hands on: what vLLM will load, a model or an adapter on one, and what its making showed."""

from __future__ import annotations

from pathlib import Path

from pipelines.artifact import Artifact
from pipelines.parity import Parity


class QuantizedModel(Artifact):
    """A merged model as vLLM will load it, or an adapter with the base that it is served on."""

    path: Path
    digest: str
    """Of its manifest."""

    served_base_path: Path | None = None
    """Where `path` is an adapter, the base that vLLM loads it on; None where it is a model."""

    served_base_digest: str | None = None

    scheme: str
    """Of the model, or of the base that the adapter is served on."""

    group_size: int | None
    """Inputs that share a scale; None where a row has one, or nothing is quantised."""

    size_bytes: int
    base_digest: str
    adapter_digest: str
    quantized_base_path: Path | None
    """The base in the same scheme, to compare with; None where that is bf16, and the base itself is served."""

    quantized_base_digest: str | None
    merged_path: Path | None
    """The merged bf16 model, where the config asks for it."""

    merged_digest: str | None
    merged_bytes: int | None
    quantized_tensors: int
    verified_tensors: int
    """Of these, how many were drawn, read again from the finished files and found equal to a float64 reference."""

    relative_error: float
    """Mean over the quantised tensors of ||dequantised - merged|| / ||merged||."""

    delta_norm: float
    """Mean over the adapted tensors of ||update|| / ||weight||: zero means that the adapter does nothing."""

    stream_seconds: float
    """Of reading, merging, rounding and writing the weights; checks before and after are not in it."""

    mb_per_second: float
    """Megabytes of the base's weights that passed in a second of these; of the adapter's, where that is exported."""

    peak_rss_gib: float
    """The most resident memory that the process has had when the weights were written."""

    parity: Parity | None = None
    """Whether it predicts what the base with its adapter does; None where the config asks for no prompts."""
