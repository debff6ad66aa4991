"""Models on their way from a checkpoint to a finished folder: written, completed and proven, sealed by a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import Images
from pipelines.system.durable import partial_of
from training.weights.journal import journal_file
from training.weights.proof import prove
from training.weights.released import Release
from training.weights.stream import Figures, Pass
from training.weights.writer import full_disk_named


@dataclass(frozen=True)
class Made:
    """Models that are right, in folders that say they are unfinished."""

    folder: Path
    releases: Mapping[str, Release]
    """By name of the model."""

    figures: Figures
    verified: int
    """Rounded matrices that were computed again in float64."""

    def unfinished(self, name: str) -> Path:
        """Where a model lies until it is sealed."""
        return partial_of(self.folder / name)

    def quantized(self, name: str) -> int:
        """Tensors of a model that were rounded."""
        release = self.releases[name]
        return len(release.checkpoint.quantized) if release.scheme.bits else 0

    def size(self, name: str) -> int:
        """Bytes of a model's weights."""
        return sum(file.size for file in self.figures.files[name])

    def seal(self) -> dict[str, str]:
        """Write the manifests and give the folders their names; returns the manifests' digests by model."""
        with full_disk_named(self.folder):
            digests = {
                name: release.seal(self.folder / name, self.figures.files[name])
                for name, release in self.releases.items()
            }
        journal_file(self.folder, list(self.releases)).unlink(missing_ok=True)
        return digests


def make(one_pass: Pass, folder: Path, images: Images | None, made_from: Mapping[str, str]) -> Made:
    """Write models, add what travels with the weights, and compute a sample of them once more.

    Args:
        one_pass: What is written of what.
        folder: Where the models will lie.
        images: Pixel limits for their image processors; None leaves those that were published.
        made_from: Digests, for the manifests.

    Raises:
        ExportRejected: What was written is not what should have been, or the base changed meanwhile.
        MachineUnfit: Disk or memory is too small.
    """
    checkpoint = one_pass.checkpoint
    releases = {name: Release(checkpoint, scheme, images, made_from) for name, scheme in one_pass.schemes.items()}
    figures = one_pass.run(folder)
    checkpoint.require_unchanged()
    verified = 0
    for name, release in releases.items():
        with full_disk_named(folder):
            release.complete(partial_of(folder / name))
        proven = prove(partial_of(folder / name), checkpoint, one_pass.update, release.scheme)
        verified += proven if release.scheme.bits else 0
    return Made(folder, releases, figures, verified)
