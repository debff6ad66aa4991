"""Predicted beside measured: how good the plan was, as figures of a finished step."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.budget.base import Base, read_base
from pipelines.budget.demand import GIB
from pipelines.budget.serving import serving_demand
from pipelines.budget.training import micro_batch, training_demand
from pipelines.errors import BadInput
from pipelines.run import Run
from pipelines.steps import DOWNLOAD, EVALUATE, FINETUNE, Step

log = logging.getLogger(__name__)


def predictions(run: Run, step: Step[Any]) -> dict[str, float]:
    """What was planned for a finished step, and what it measured over what was planned.

    Empty for a step without a plan, and where the base cannot be planned or has left the machine since: that must not
    keep a run from being published.
    """
    planned = {FINETUNE.name: _training, EVALUATE.name: _serving}.get(step.name)
    if planned is None or not run.finished(DOWNLOAD) or not (folder := run.read(DOWNLOAD).path).is_dir():
        return {}
    try:
        return planned(run, read_base(folder))
    except BadInput as unplanned:
        log.warning("%s has no prediction: %s", step.name, unplanned)
        return {}


def _training(run: Run, base: Base) -> dict[str, float]:
    adapter = run.read(FINETUNE)
    tokens = min(adapter.tokens_per_batch, micro_batch(run.config))  # less than planned after running out of memory
    predicted = training_demand(run.config, base, tokens=tokens).peak_bytes / GIB
    return _compared("finetune", predicted, adapter.peak_gib)


def _serving(run: Run, base: Base) -> dict[str, float]:
    candidate = run.read(EVALUATE).subject("candidate")
    if candidate is None or run.config.hardware.device != "cpu":  # on a card, an engine's memory is what it was given
        return {}
    predicted = serving_demand(run.config, base, run.config.export.stored, name="serving").peak_bytes / GIB
    return _compared("evaluate", predicted, candidate.peak_gib)


def _compared(step: str, predicted_gib: float, measured_gib: float) -> dict[str, float]:
    return {
        f"{step}.predicted_peak_gib": predicted_gib,
        f"{step}.measured_over_predicted": measured_gib / predicted_gib,
    }
