"""What the Dags' own small tasks do: open a run's directory, and show a candidate to a person. Imports no Airflow.

What a person or another system hands to a Dag is not trusted: a config lies in a folder that the machine's owner chose,
an override is one line, and a run is named, never given as a path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.artifacts import GateDecision, ModelVersion
from pipelines.config_file import load_config
from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport
from pipelines.run import Run, run_name
from pipelines.settings import ROOT, Settings
from pipelines.steps import EVALUATE, GATE, REGISTER
from pipelines.system.durable import write_text

CONFIG_PATTERN = r"^[A-Za-z0-9_./-]+\.ya?ml$"
OVERRIDE_PATTERN = r"^[a-z_]+(\.[a-z0-9_]+)+=[^\r\n]{1,200}$"
APPROVE, REJECT = "Approve", "Reject"

RUN_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


def run_root(dag_id: str, run_id: str, settings: Settings) -> Path:
    """Where the run of a Dag run lies: the same for every task and callback, without asking anyone."""
    return settings.runs / run_name(f"{dag_id}-{run_id}")


def why(run_type: str, reason: str, events: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """What started a retrain, and the reason given for it.

    Args:
        run_type: Airflow's word: `scheduled`, `asset_triggered`; anything else is a person or another system.
        reason: What a person or another system gave.
        events: By name of the Asset, what came with its events, the newest last.
    """
    told = {name: _payload(extras[-1]) for name, extras in events.items() if extras}
    if (request := told.get("retrain_requested")) is not None:
        return {"trigger": "monitoring", "reason": str(request.get("reason") or "no reason given")}
    if (data := told.get("new_data")) is not None:
        files = f"{data.get('new', 'some')} new files in {data.get('address', 'the data')}"
        return {"trigger": "data", "reason": files}
    if run_type == "scheduled":
        return {"trigger": "schedule", "reason": reason or "its time had come"}
    return {"trigger": "hand", "reason": reason}


def _payload(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a watcher said; Airflow wraps it."""
    inner = extra.get("payload")
    return inner if extra.get("from_trigger") and isinstance(inner, Mapping) else extra


def open_run(
    dag_id: str, run_id: str, params: Mapping[str, Any], settings: Settings, asked: Mapping[str, str] | None = None
) -> str:
    """Check the config, make the run's directory, note who asked for what, and return the directory.

    Args:
        asked: What started it and why, where anything may: see `why`.

    Raises:
        BadInput: The config lies elsewhere than it may, or is wrong; or the directory is another Dag run's.
    """
    path = allowed_config(params.get("config") or str(settings.config), settings)
    config = load_config(path, tuple(params.get("overrides") or ()))
    run = Run.create(run_root(dag_id, run_id, settings), config)
    _require_own(run, run_id)
    request = {"dag": dag_id, "dag_run": run_id, "config": str(path), **params, **(asked or {})}
    write_text(run.request, json.dumps(request, indent=2))
    return str(run.root)


def _require_own(run: Run, run_id: str) -> None:
    """Names of Dag runs may differ in characters that no folder's name keeps: `a+b` and `a:b`."""
    if run.request.is_file() and (other := json.loads(run.request.read_text())["dag_run"]) != run_id:
        raise BadInput(f"{run.root} is that of Dag run {other}; give this one an id that differs in letters or digits")


def allowed_config(text: str, settings: Settings) -> Path:
    """The file of a config, if it lies below the shipped configs or in the folder of the machine's own config.

    Raises:
        BadInput: It lies elsewhere, links followed.
    """
    path = (ROOT / text).resolve()
    folders = (ROOT / "configs", settings.config.parent)
    if not any(path.is_relative_to(folder) for folder in folders):
        allowed = " and ".join(str(folder) for folder in dict.fromkeys(folders))
        raise BadInput(f"config {text}: {path} is not below {allowed}; put it there, or set VLMOPS_CONFIG")
    return path


def registered_candidate(extras: Sequence[Mapping[str, Any]], named: str | None, settings: Settings) -> dict[str, Any]:
    """What a person is asked about: the candidate of the run they named, or of the newest asset event.

    Args:
        extras: What came with the asset events, the newest last.
        named: The run's name, where a person started the review.

    Raises:
        BadInput: No run is named, or it registered nothing.
    """
    name = named or (extras[-1].get("run") if extras else None)
    if not name:
        raise BadInput("no run to review: start this Dag with the name of a run, such as the newest in `vlmops status`")
    run = Run.open(settings.runs / run_name(str(name)))
    version = run.read(REGISTER)
    return {
        "name": version.name,
        "version": version.version,
        "subject": f"Serve {version.name} version {version.version}?",
        "body": review_text(version, run.read(EVALUATE), run.read(GATE)),
    }


def review_text(version: ModelVersion, report: EvalReport, decision: GateDecision) -> str:
    """The figures a person decides on, as Markdown, below the address of the whole report."""
    lines = [f"The gate says **{decision.outcome}** against {decision.reference}.", ""]
    if version.report is not None:
        lines += [f"[Report: pictures, changed answers, where it comes from]({version.report})", ""]
    lines += [f"- {finding.name}: **{finding.outcome}**. {finding.reason}" for finding in decision.findings]
    lines += ["", "| slice | " + " | ".join(e.subject for e in report.evaluations) + " |"]
    lines += ["|---" * (len(report.evaluations) + 1) + "|"]
    for name in sorted({name for evaluation in report.evaluations for name in evaluation.scores}):
        shares = (evaluation.scores.get(name) for evaluation in report.evaluations)
        cells = (f"{s.share:.1%} ({s.low:.1%} to {s.high:.1%}, n {s.n})" if s else "not measured" for s in shares)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Measured by {report.engine}. Files: `{version.uri}`, digest `{version.digest[:12]}`."]
    return "\n".join(lines)


def answered(answer: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Who answered a review, their reason, and whether they approve."""
    user = answer.get("responded_by_user") or {}
    who = str(user.get("name") or user.get("id") or "nobody (the request expired)")
    reason = str((answer.get("params_input") or {}).get("reason") or "")
    return who, reason, answer["chosen_options"] == [APPROVE]
