"""What each step hands on: small, frozen, written as JSON. Facts, locations and digests, never tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.artifact import Artifact


class BaseSnapshot(Artifact):
    """A pinned base model on disk."""

    path: Path
    source: str
    """What it was fetched from, fallback applied."""

    revision: str
    """40 hex digits: the commit, or of a built-in model the digest of its recipe."""

    digest: str
    """Of its manifest: names the exact bytes."""

    manifest: Path | None = None
    """Folder that holds its manifest, where the model lies in a folder that is not ours to write in."""

    architecture: str
    """The `architectures` entry of its config.json."""


class Reject(Artifact):
    """One unusable row and why."""

    file: str = "data.jsonl"
    """Of the source's folder."""

    line: int
    """Line of the file, item of its array or row of its table, from 1."""

    reason: str
    detail: str


class Dataset(Artifact):
    """A checked and split data set: `train.jsonl`, `eval.jsonl`, `test.jsonl` and their images."""

    path: Path
    digest: str
    """Of its manifest."""

    test_digest: str
    """Of the test questions, images and expected answers: two reports compare only if it is equal."""

    rows: dict[str, int]
    """Rows per split."""

    slices: dict[str, dict[str, int]]
    """Rows per split and slice."""

    rejects: tuple[Reject, ...]
    tokens: tuple[int, ...]
    """Histogram of tokens per row; bucket i counts rows of 16 i to 16 i + 15 tokens."""

    visual_share: float
    """Visual tokens of all tokens."""

    preflight: dict[str, float] = Field(default_factory=dict)
    """Key figures of `report.json`: rejects, tokens per row, images, and what an epoch takes."""


class MemoryPeak(Artifact):
    """Memory of one phase of training: of the device on CUDA, of the process since its start on a CPU."""

    allocated_gib: float
    """In tensors, at the worst moment."""

    reserved_gib: float
    """Held by the allocator, at the worst moment: what the card must have."""

    inactive_gib: float
    """Free pieces of blocks in use, at the worst moment: lost to fragmentation."""

    retries: int
    """Times that the allocator had to give everything back before it found a block."""


class Adapter(Artifact):
    """A trained LoRA adapter in PEFT's layout."""

    path: Path
    digest: str
    """Of its manifest."""

    base_digest: str
    """Of the base it was trained on; export refuses any other."""

    trainable_parameters: int
    steps: int
    """That were trained."""

    stopped_early: bool
    """Whether the evaluation loss stopped falling before the config's steps were done."""

    best_step: int
    """Step of the lowest evaluation loss; these are its weights, unless train.keep_best is off."""

    loss: float
    """Training loss over the last tenth of the steps, nats per answer token."""

    eval_loss: float
    """Of these weights on the evaluation split, nats per answer token."""

    tokens_per_second: float
    """Without padding, all devices together."""

    padding_share: float
    """Padding of all that went through the model."""

    tokens_per_batch: int
    """Of the config, or half of it where the run went out of memory."""

    peak_gib: float
    """Peak memory over all phases, tensors only: of the device on CUDA, of the process on a CPU."""

    memory: dict[str, MemoryPeak]
    """By phase: load, train, evaluate, save. Of the first device."""


class Finding(Artifact):
    """What the gate found on one requirement."""

    name: str
    """The slice, the share that has a limit, or `quantization`, `empty`, `cut`, `latency`, `memory`; `evaluation` where
    nothing can be compared.
    """

    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
    """A sentence with the figures."""

    items_needed: int | None = None
    """Of an inconclusive finding: about how many items would decide."""

    difference: float | None = None
    """Observed, from the reference: shares or mean grades, -1 to 1. None where nothing was compared, as below."""

    lower: float | None = None
    """One-sided bound of the difference, at `gate.confidence`."""

    upper: float | None = None
    """The other one-sided bound; each holds alone."""

    threshold: float | None = None
    """What the difference must surely exceed: minus the margin, or 0 where a gain is required."""

    n: int | None = None
    """Items that were compared, or answers that a limit's share is of."""

    wins: int | None = None
    """Items that the candidate answers better; of answers that are right or wrong, that it alone has right."""

    losses: int | None = None
    """Items that the reference answers better."""


class GateDecision(Artifact):
    """May the candidate replace what serves?"""

    outcome: Literal["pass", "fail", "inconclusive"]
    reference: str
    """What it was compared with: `champion v3` or `base`."""

    findings: tuple[Finding, ...]

    @property
    def proceed(self) -> bool:
        """Only a pass goes on."""
        return self.outcome == "pass"


class ModelVersion(Artifact):
    """A registered version."""

    name: str
    version: int
    uri: str
    """Of the exported folder; nothing is copied."""

    digest: str
    base_uri: str | None = None
    """Where the folder holds an adapter, the model that it is served on; None where it holds a model."""

    base_digest: str | None = None
    serving: str
    """The serving section it was measured with, as JSON: it is served the same way."""

    images: str | None = None
    """The images section, likewise. None: registered before it was kept."""

    hardware: str | None = None
    """The hardware profile, likewise."""

    golden: str
    """Path of its golden answers."""

    golden_digest: str | None = None
    """Of the golden questions, their images and their answers. None: registered before there was one."""

    tracking_run: str
    """MLflow run id."""

    report: str | None = None
    """Address of the page that a person reads before deciding. None: registered by a version that wrote none."""


class Deployment(Artifact):
    """What serves now."""

    endpoint: str
    name: str
    version: int
    previous: int | None
    strategy: str
    hold_seconds: float
    """How long new requests waited."""

    probe_matched: int
    probe_asked: int
