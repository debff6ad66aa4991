"""The command `vlmops pod`, and what a task of Airflow's KubernetesExecutor is given."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from pipelines.budget.base import find_base
from pipelines.budget.plan import make_plan
from pipelines.config_file import load_config
from pipelines.errors import DONE
from pipelines.pod import override, pod, require_outside
from pipelines.run import Run
from pipelines.settings import Pods, Settings
from pipelines.steps import PROMOTE, STEPS, Step

EXAMPLES = """examples:
  VLMOPS_POD_ML_IMAGE=registry.local/vlmops-ml:1 vlmops pod .vlmops/runs/smoke finetune | kubectl create -f -
  vlmops pod .vlmops/runs/smoke evaluate | kubectl create --dry-run=server -f -

A pod that ended stays, with its log, and the step is not started again while it is there: `kubectl delete pod NAME`.
Images, volumes and nodes: VLMOPS_POD_... (docs/scaling.md).
"""


def add_pod(command: argparse.ArgumentParser) -> None:
    """Arguments of `vlmops pod`."""
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    command.add_argument("run", type=Path, help="directory of the run")
    command.add_argument("step", choices=STEPS)
    command.set_defaults(command=_pod)


def _pod(args: argparse.Namespace) -> int:
    run, settings = Run.open(args.run), Settings()
    plan = make_plan(run.config, find_base(run.config.model.source, settings))
    manifest = pod(STEPS[args.step], run, settings, Pods(), plan)
    yaml.safe_dump(manifest, sys.stdout, sort_keys=False)
    return DONE


def executor_config(step: Step[Any], settings: Settings) -> dict[str, Any]:
    """The `executor_config` of a step's task: nothing, unless VLMOPS_POD_CORE_IMAGE says that tasks are pods.

    Raises:
        BadInput: Something else that a pod needs is not set.
    """
    pods = Pods()
    if pods.core_image is None or step is PROMOTE:  # an engine would end with its pod
        return {}
    from kubernetes.client import ApiClient, Configuration  # a second of import, for those who have a cluster

    require_outside(settings)
    described = override(step, load_config(settings.config), settings, pods)
    # A configuration of its own: that of the cluster holds what cannot be pickled onto the executor's queue.
    client = ApiClient(configuration=Configuration())
    return {"pod_override": client.deserialize(SimpleNamespace(data=json.dumps(described)), "V1Pod")}
