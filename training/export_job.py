"""What `vlmops export` is asked for: by a run's records, by a checkpoint's folder, by the command line above both."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.artifacts import Dataset
from pipelines.config import Config, Images
from pipelines.config_export import Export
from pipelines.errors import BadInput, MachineUnfit, RunConflict
from pipelines.run import Run
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, FINETUNE, PREPARE
from pipelines.system.durable import partial_of
from training.sources.safety import model_config


@dataclass(frozen=True)
class RunRecord:
    """What a run knows beside its models."""

    config: Config
    data: Dataset
    """Predictions are compared on its evaluation rows; calibrated schemes see its training rows."""


@dataclass(frozen=True)
class Job:
    """What is exported, and how."""

    base: Path
    adapter: Path | None
    out: Path
    export: Export
    device: str
    record: RunRecord | None = None
    """None for a checkpoint alone."""

    @property
    def merged(self) -> Path:
        """Where the merged model lies while a calibrated scheme is made of it."""
        return self.out.with_name(f".{self.out.name}.merged")

    def require_apart(self) -> None:
        """Hold the folders that are written against those that are read.

        Raises:
            BadInput: One is, holds or lies in another.
        """
        for source in (path.resolve() for path in (self.base, self.adapter) if path):
            for folder in (self.out, partial_of(self.out), self.merged):
                if folder.is_relative_to(source) or source.is_relative_to(folder):
                    raise BadInput(f"--out {self.out} lies in {source}, which is only read; name a folder beside it")

    @contextmanager
    def claim(self) -> Iterator[None]:
        """The right to write, for one process at a time; a dead process holds none.

        Raises:
            RunConflict: Another process is writing there.
            BadInput: One has finished there since this one began.
        """
        lock = self.out.with_name(f".{self.out.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))
            except BlockingIOError:
                held = False
            if not held:
                raise RunConflict(f"another process is exporting to {self.out}; wait for it, or name another --out")
            try:
                free(self.out)
                yield
            finally:
                lock.unlink()

    @property
    def images(self) -> Images | None:
        """Pixel limits for the image processor; None leaves those that were published."""
        return self.record.config.images if self.record else None


def arguments() -> argparse.ArgumentParser:
    """Of `training.standalone`; `vlmops export` has the same, with their help."""
    parser = argparse.ArgumentParser(prog="python -m training.standalone")
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--scheme", choices=SCHEMES)
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--adapter-only", action="store_true")
    return parser


def job_of(args: argparse.Namespace) -> Job:
    """What a command line asks for, with what a run records where it names one.

    Raises:
        BadInput: Something is missing, or there already.
        MachineUnfit: A card is asked for, and there is none.
    """
    if not args.model.is_dir():
        raise BadInput(f"{args.model}: no such folder; name a run, or a folder with a published checkpoint")
    # Runs and models both have a config.json.
    job = _of_run(args) if "hardware" in model_config(args.model) else _of_base(args)
    job.require_apart()
    return job


def _of_run(args: argparse.Namespace) -> Job:
    run = Run.open(args.model)
    export = _asked(args, run.config.export)
    if not args.adapter_only:
        _require_environment(export)
    what = "adapter" if args.adapter_only else export.scheme
    return Job(
        base=run.read(DOWNLOAD).path,
        adapter=args.adapter.resolve() if args.adapter else run.read(FINETUNE).path,
        out=free(args.out or run.root / "exports" / what),
        export=export,
        device=_device(args.device or export.device or run.config.hardware.device),
        record=RunRecord(run.config.model_copy(update={"export": export}), run.read(PREPARE)),
    )


def _require_environment(export: Export) -> None:
    python = Settings().quantize_python
    if export.stored.calibrated and not (python and Path(python).is_file()):
        raise MachineUnfit(f"export.scheme {export.scheme} needs `make quantize-env`: llm-compressor is not installed")


def _of_base(args: argparse.Namespace) -> Job:
    if args.out is None:
        raise BadInput(f"{args.model} is no run of ours; say by --out where its export goes")
    base, adapter, out = args.model.resolve(), args.adapter and args.adapter.resolve(), free(args.out)
    if args.adapter_only and adapter is None:
        raise BadInput("--adapter-only exports an adapter; name it by --adapter, or name a run")
    export = _asked(args, Export())
    if export.stored.calibrated:
        raise BadInput(
            f"{export.scheme} is calibrated on training rows, which only a run has; name one instead of a base"
        )
    if export.parity.prompts and "vision_config" not in model_config(base):
        raise BadInput(
            f"{base} sees no images, and predictions are compared on drawn pictures; --prompts 0 exports it unproven"
        )
    return Job(base, adapter, out, export, _device(args.device or "cpu"))


def _asked(args: argparse.Namespace, export: Export) -> Export:
    """The settings with what the command line says otherwise."""
    if args.prompts is not None and args.prompts < 0:
        raise BadInput(f"--prompts {args.prompts}: a number from 0 on")
    if args.prompts is not None:
        export = export.model_copy(update={"parity": export.parity.model_copy(update={"prompts": args.prompts})})
    changed = {"scheme": args.scheme or export.scheme, "group_size": args.group_size or export.group_size}
    return export.model_copy(update=changed)


def free(out: Path) -> Path:
    """A folder to write, as an absolute path.

    Raises:
        BadInput: Something is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not empty; delete it, or name another folder by --out")
    return out.resolve()


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineUnfit("no CUDA device here; add --device cpu, which is nearly as fast as the disk")
    return name
