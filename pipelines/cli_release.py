"""`vlmops release`: a registered version as files that another place can serve it from."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import line
from pipelines.errors import FAILED
from pipelines.launch import run_module
from pipelines.settings import Settings

MODULE = "serving.release_files"
FORMATS = ("compose", "kserve", "production-stack", "rayservice")

EXAMPLES = """examples:
  vlmops release 3                                      release.json, golden answers, compose.yaml
  vlmops release .vlmops/runs/smoke --out digits-v3
  vlmops release 3 --format kserve production-stack --claim models/qwen-int8
  vlmops release 3 --format rayservice --claim models/qwen-int8 --ray-image ours/ray-vllm:0.32.0

The engine's arguments are the same in all of them: those that the version was measured with.
"""


def add_release(command: argparse.ArgumentParser) -> None:
    """Give a parser the arguments and examples of the command."""
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    command.add_argument("target", help="number of a registered version, or directory of the run that made it")
    command.add_argument("--config", type=Path, default=Settings().config, help="names the registered model")
    command.add_argument("--out", type=Path, help="folder of the files; RUN/release by default")
    command.add_argument("--format", nargs="+", choices=FORMATS, default=["compose"], help="manifests; compose")
    command.add_argument("--claim", metavar="NAME/PATH", help="persistent volume claim that holds the model's folder")
    command.add_argument("--image", help="container image of vLLM; the published one of the measured version")
    command.add_argument("--ray-image", help="container image with Ray and that vLLM, for rayservice")
    command.set_defaults(command=_release)


def _release(args: argparse.Namespace) -> int:
    named = {"config": args.config, "out": args.out, "claim": args.claim}
    named |= {"image": args.image, "ray-image": args.ray_image}
    options = [f"--{name}={value}" for name, value in named.items() if value is not None]
    arguments = [args.target, *options, "--format", *args.format]
    try:
        if not args.target.isdecimal():  # a run knows what it registered
            return run_module(Settings(), MODULE, *arguments)
        with line.tracked(Settings()) as tracked:
            return run_module(tracked, MODULE, *arguments)
    except KeyboardInterrupt:
        return FAILED
