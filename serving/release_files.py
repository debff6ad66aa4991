"""A release as files, in a folder that can be taken elsewhere: `python -m serving.release_files VERSION|RUN`.

`release.json` says everything, and the manifests are made from it; `golden/` has the golden questions, their images and
the answers that must come again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipelines.artifacts import ModelVersion
from pipelines.budget.base import read_base
from pipelines.config_file import load_config
from pipelines.errors import DONE, BadInput, VlmopsError
from pipelines.registry import Registry
from pipelines.run import RELEASES, Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, REGISTER
from pipelines.system.durable import append_line, write_text
from pipelines.system.manifest import verify_manifest
from serving.exporters.compose import to_compose
from serving.exporters.document import Document, to_yaml
from serving.exporters.kserve import to_kserve
from serving.exporters.place import Claim, Place, vllm_image
from serving.exporters.production_stack import to_production_stack
from serving.exporters.rayservice import to_rayservice
from serving.golden import golden_images, read_golden
from serving.release import Release, describe
from serving.served import served

EXPORTERS: Final[dict[str, Callable[[Release, Place], Document]]] = {
    "compose": to_compose,
    "kserve": to_kserve,
    "production-stack": to_production_stack,
    "rayservice": to_rayservice,
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be written."""

    out: Path | None = None
    """Folder. None: beside the run's other results."""

    formats: Sequence[str] = ("compose",)
    image: str | None = None
    """Of vLLM. None: the one that is published of the release's version."""

    ray_image: str | None = None
    """Of Ray with that version of vLLM; no default, since Ray's own images have versions of their own."""

    claim: Claim | None = None

    def place(self, exporter: str, release: Release) -> Place:
        """Where an exporter's manifest goes.

        Raises:
            BadInput: No image is known.
        """
        if exporter != "rayservice":
            return Place(image=self.image or vllm_image(release), claim=self.claim)
        if self.ray_image is None:
            raise BadInput(
                f"rayservice needs an image with Ray and vLLM {release.engine.version}; name one by --ray-image"
            )
        return Place(image=self.ray_image, claim=self.claim)


def find_version(target: str, config: Path, settings: Settings) -> tuple[Run, ModelVersion]:
    """A registered version and the run that made it.

    Args:
        target: Number of the version, or directory of the run.
        config: Names the registered model, where it is a number.
        settings: With the MLflow server.

    Raises:
        BadInput: There is no such version, or the run has registered nothing or is gone.
        Unreachable: MLflow does not answer.
    """
    if not target.isdecimal():
        run = Run.open(Path(target))
        return run, run.read(REGISTER)
    registry = Registry(settings, load_config(config).registry.model)
    version = registry.version(int(target))
    return Run.open(Path(registry.tags(version.version)["run"])), version


def write_release(run: Run, version: ModelVersion, order: Order) -> Path:
    """Check the files of a version, and write its release with the manifests that are wanted.

    Args:
        run: That made it.
        version: As registered.
        order: What is wanted.

    Returns:
        The folder. `release.json` is written last.

    Raises:
        BadInput: An exporter lacks what it needs; nothing was written.
        ManifestMismatch: The model is not what was measured; nothing was written.
    """
    now, base = served(run.config, version), read_base(run.read(DOWNLOAD).path)
    release = describe(run.config, version, base, datetime.now(UTC).replace(microsecond=0))
    manifests = {name: EXPORTERS[name](release, order.place(name, release)) for name in order.formats}
    verify_manifest(now.model, version.digest)
    if order.out is not None:
        _note(run, order.out)
    out = order.out or run.root / RELEASES
    _copy_golden(now.golden, out / "golden")
    comment = f"{release.names[1]}, from release.json, by `vlmops release`: write it again instead of editing it."
    for name, manifest in manifests.items():
        write_text(out / f"{name}.yaml", to_yaml(manifest, comment))
    write_text(out / "release.json", release.model_dump_json(indent=2) + "\n")
    return out


def _note(run: Run, out: Path) -> None:
    """Leave word in the run, which `vlmops gc` then keeps, wherever its release lies."""
    (run.root / RELEASES).mkdir(exist_ok=True)
    append_line(run.root / RELEASES / "written.jsonl", json.dumps({"to": str(out.resolve())}))


def _copy_golden(golden: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    names = {golden.name, *(image for asked in read_golden(golden) for image in golden_images(asked))}
    for name in sorted(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(golden.parent / name, folder / name)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.release_files", description=__doc__)
    parser.add_argument("target", help="number of a registered version, or directory of a run")
    parser.add_argument("--config", type=Path, default=Settings().config)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--format", dest="formats", nargs="+", choices=EXPORTERS, default=["compose"])
    parser.add_argument("--image")
    parser.add_argument("--ray-image")
    parser.add_argument("--claim")
    args = parser.parse_args(argv)
    try:
        claim = None if args.claim is None else Claim.parse(args.claim)
        order = Order(out=args.out, formats=args.formats, image=args.image, ray_image=args.ray_image, claim=claim)
        out = write_release(*find_version(args.target, args.config, Settings()), order)
    except VlmopsError as error:
        sys.stderr.write(f"vlmops: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}\n")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
