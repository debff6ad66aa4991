"""The command `vlmops`.

Exit codes: 0 done, 1 failure, 2 bad input, 3 the gate said no.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipelines import line
from pipelines.alerts.commands import add_alert
from pipelines.budget.show import show_plan
from pipelines.cli_monitor import add_monitor
from pipelines.cli_release import add_release
from pipelines.cli_serving import add_promote, add_rollback, add_serving
from pipelines.comparison.command import add_compare
from pipelines.config import Config
from pipelines.config_export import GroupSize
from pipelines.config_file import load_config
from pipelines.doctor import examine, require_fit
from pipelines.errors import DONE, FAILED, VlmopsError
from pipelines.judgement.alone import judge_reports
from pipelines.keys.commands import add_keys
from pipelines.launch import run_module, run_step
from pipelines.pod_commands import add_pod
from pipelines.pod_runs import add_remote
from pipelines.retention.commands import add_backup, add_gc, add_restore
from pipelines.run import Run
from pipelines.scenarios.commands import add_scenario
from pipelines.schemes import SCHEMES
from pipelines.settings import Settings
from pipelines.stack.commands import add_stack
from pipelines.status import show_run, show_runs, show_seen
from pipelines.steps import STEPS
from pipelines.system.processes import end_cleanly_on_sigterm

EXAMPLES = """examples:
  vlmops doctor                                         what this machine can do
  vlmops plan configs/qwen3_vl_30b.yaml                 what it needs, and whether the card has that
  vlmops run configs/smoke.yaml                         from the base model to a registered candidate
  vlmops run configs/smoke.yaml --name r8 --set lora.rank=8
  vlmops step .vlmops/runs/smoke gate                   one step of a run
  vlmops status                                         the runs there are
  vlmops gate .vlmops/runs/r8 --against .vlmops/runs/smoke
  vlmops scenario check configs/scenarios/catalog       what is wrong with a scenario pack
  vlmops export .vlmops/runs/smoke --scheme bf16        a run's model in another scheme
  vlmops compare .vlmops/runs/smoke --schemes bf16 int8_w8a8 int4_w4a16
  vlmops stack                                          Airflow, MLflow and the serving front, until Ctrl-C
  vlmops promote --version 3 --reason "reads sevens"    approve a version and put it into service
  vlmops rollback                                       back to what served before
  vlmops monitor --every 60                             look after the service, the card and the disks
  vlmops release 3 --out digits-v3                      what another place needs to serve version 3

exit codes: 0 done, 1 failure, 2 bad input, 3 the gate said no
"""

EXPORT_EXAMPLES = """examples:
  vlmops export .vlmops/runs/smoke --scheme int4_w4a16 --group-size 32
  vlmops export models/Qwen3-VL-30B-A3B-Instruct --out models/qwen-int8
  vlmops export models/Qwen3-VL-30B-A3B-Instruct --adapter tuned --scheme bf16 --out models/merged
  vlmops export .vlmops/runs/smoke --adapter-only       for `vllm serve BASE --enable-lora`

An interrupted export is continued by the same command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    end_cleanly_on_sigterm()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        code: int = args.command(args)
    except VlmopsError as error:
        print(f"vlmops: {error}", file=sys.stderr)
        return error.exit_code
    return code


def parser() -> argparse.ArgumentParser:
    """Every command, its arguments and its help."""
    root = argparse.ArgumentParser(
        prog="vlmops",
        description="Retrain a vision-language model, judge it as it will be served, and put it into service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run every step from download to register; again: resume")
    _add_config(run)
    run.add_argument("--name", help="name of the run's directory; the config's by default")
    run.set_defaults(command=_run)

    _add_step(commands.add_parser("step", help="run one step of a run"))
    add_pod(commands.add_parser("pod", help="one step of a run as a pod of a Kubernetes cluster, as YAML"))
    add_remote(commands.add_parser("remote", help="a run to a bucket, or from it: push, pull"))

    status = commands.add_parser("status", help="the runs there are, or one run step by step")
    status.add_argument("run", type=Path, nargs="?", help="directory of a run")
    status.set_defaults(command=_status)

    validate = commands.add_parser("validate", help="check a config and print it resolved")
    _add_config(validate)
    validate.set_defaults(command=_validate)

    plan = commands.add_parser("plan", help="what a config needs of its hardware, and whether that fits")
    _add_config(plan)
    plan.set_defaults(command=_plan)

    schema = commands.add_parser("schema", help="print the JSON schema of the config")
    schema.set_defaults(command=_schema)

    doctor = commands.add_parser("doctor", help="what this machine can do, and what is missing")
    doctor.set_defaults(command=_doctor)

    add_promote(commands.add_parser("promote", help="put the approved version into service"))
    add_rollback(commands.add_parser("rollback", help="put back into service what served before"))

    gate = commands.add_parser("gate", help="judge evaluation reports alone: a candidate against its base or another")
    gate.add_argument("report", type=Path, help="a run, or the output.json of its step evaluate")
    gate.add_argument("--against", type=Path, help="the report of what it would replace; its own base by default")
    gate.add_argument("--config", type=Path, help="whose section gate holds; the run's own by default")
    gate.set_defaults(command=_gate)

    _add_export(commands.add_parser(
        "export", help="export a run's model, or any local checkpoint, alone", epilog=EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ))  # fmt: skip

    add_scenario(commands.add_parser("scenario", help="scenario packs: list, check, make of your own images"))

    add_compare(_add_overrides(commands.add_parser("compare", help="a run's model in several schemes, as served")))

    ask = commands.add_parser("ask", help="ask the served model about an image")
    ask.add_argument("image", type=Path)
    ask.add_argument("question")
    ask.set_defaults(command=_ask)

    add_serving(commands.add_parser("serving", help="what serves: status, start, stop, watch"))

    add_monitor(
        commands.add_parser("monitor", help="look at what serves, the card and the disks; once, or again and again")
    )

    add_gc(commands.add_parser("gc", help="what takes room and nothing refers to; --yes deletes it"))
    add_backup(commands.add_parser("backup", help="copy what cannot be made again: registry, keys, deploy log"))
    add_restore(commands.add_parser("restore", help="put a backup back"))

    add_alert(commands.add_parser("alert", help="whether those who are to be told can be reached: test"))

    add_keys(commands.add_parser("keys", help="who may ask what serves: add, list, rotate, revoke"))

    add_release(commands.add_parser("release", help="a version as files that another place can serve it from"))

    add_stack(commands.add_parser("stack", help="Airflow, MLflow, the front, until Ctrl-C; init: for production"))

    demo = commands.add_parser("demo", help="show the whole line on the embedded default")
    demo.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C")
    demo.set_defaults(command=_demo)
    return root


def _add_step(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, help="directory of the run")
    command.add_argument("step", choices=STEPS)
    command.set_defaults(command=_step)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, help="such as configs/smoke.yaml")
    _add_overrides(command)


def _add_overrides(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        action="append",
        default=[],
        help="override one field; may be repeated",
    )
    return command


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="directory of a run, or a folder with a checkpoint")
    command.add_argument("--adapter", type=Path, help="folder of a LoRA adapter in PEFT's layout; a run has its own")
    command.add_argument("--scheme", choices=SCHEMES, help="what weights are stored as; a run's own, else int8_w8a8")
    command.add_argument("--group-size", choices=get_args(GroupSize), type=int, help="inputs that share a scale; 128")
    command.add_argument("--out", type=Path, help="where the export goes; RUN/exports/SCHEME of a run")
    command.add_argument("--device", choices=("cpu", "cuda"), help="that does the arithmetic; a run's own, else cpu")
    command.add_argument("--prompts", type=int, help="whose predictions are compared; a run's own, else 8; 0: unproven")
    command.add_argument("--adapter-only", action="store_true", help="the adapter for vLLM, to be served on its base")
    command.set_defaults(command=_export)


def _config(args: argparse.Namespace) -> Config:
    return load_config(args.config, tuple(args.overrides))


def _run(args: argparse.Namespace) -> int:
    config = _config(args)
    require_fit(Settings(), config.hardware)
    return line.retrain(config, args.name or args.config.stem, Settings())


def _step(args: argparse.Namespace) -> int:
    run = Run.open(args.run)
    with line.tracked(Settings()) as settings:
        return run_step(STEPS[args.step], run.root, settings)


def _status(args: argparse.Namespace) -> int:
    if args.run:
        show_run(Run.open(args.run))
    else:
        show_runs(Settings().runs)
        show_seen(Settings())
    return DONE


def _validate(args: argparse.Namespace) -> int:
    print(_config(args).model_dump_json(indent=2))
    return DONE


def _plan(args: argparse.Namespace) -> int:
    return show_plan(_config(args), Settings())


def _schema(args: argparse.Namespace) -> int:  # noqa: ARG001  every command has the arguments
    print(json.dumps(Config.model_json_schema(), indent=2))
    return DONE


def _doctor(args: argparse.Namespace) -> int:  # noqa: ARG001
    return examine(Settings())


def _gate(args: argparse.Namespace) -> int:
    return judge_reports(args.report, args.against, args.config, Settings())


def _ask(args: argparse.Namespace) -> int:
    return _run_ml("serving.ask", str(args.image), args.question)


def _export(args: argparse.Namespace) -> int:
    named = {"adapter": args.adapter, "scheme": args.scheme, "group-size": args.group_size}
    named |= {"out": args.out, "device": args.device, "prompts": args.prompts}
    options = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return _run_ml("training.standalone", str(args.model), *options, *(["--adapter-only"] if args.adapter_only else []))


def _run_ml(module: str, *arguments: str) -> int:
    """Run a module in the ml environment; it says itself how it ended, also by Ctrl-C."""
    try:
        return run_module(Settings(), module, *arguments)
    except KeyboardInterrupt:
        return FAILED


def _demo(args: argparse.Namespace) -> int:
    from pipelines.demo.story import run_demo

    require_fit(Settings())
    return run_demo(Settings(), keep=args.keep)


if __name__ == "__main__":
    sys.exit(main())
