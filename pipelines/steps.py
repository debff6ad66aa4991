"""THE TABLE: every step, its function by name, its environment, what it needs first.

Airflow and the command line both read this table, and neither repeats it. A step is a plain function
`def step(config: Config, folder: Path, *needs: Artifact) -> Artifact`; a test checks every target against its entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pipelines.artifact import Artifact
from pipelines.artifacts import Adapter, BaseSnapshot, Dataset, Deployment, GateDecision, ModelVersion
from pipelines.evaluation import EvalReport
from pipelines.exported import QuantizedModel

T = TypeVar("T", bound=Artifact)


@dataclass(frozen=True, kw_only=True)
class Step(Generic[T]):
    """One unit of work."""

    name: str
    target: str
    output: type[T]
    environment: Literal["core", "ml"] = "core"
    needs: tuple[Step[Any], ...] = ()
    gpu: bool = False
    """Needs the card: one at a time."""


DOWNLOAD = Step(name="download", target="training.download:download", output=BaseSnapshot, environment="ml")
PREPARE = Step(
    name="prepare", target="training.data:prepare", output=Dataset, environment="ml", needs=(DOWNLOAD,)
)  # the base's tokenizer counts the tokens
FINETUNE = Step(
    name="finetune",
    target="training.finetune:finetune",
    output=Adapter,
    environment="ml",
    needs=(DOWNLOAD, PREPARE),
    gpu=True,
)
EXPORT = Step(
    name="export",
    target="training.export:export",
    output=QuantizedModel,
    environment="ml",
    needs=(DOWNLOAD, PREPARE, FINETUNE),
    gpu=True,
)
EVALUATE = Step(
    name="evaluate",
    target="serving.evaluate:evaluate",
    output=EvalReport,
    environment="ml",
    needs=(DOWNLOAD, PREPARE, EXPORT),
    gpu=True,
)
GATE = Step(name="gate", target="pipelines.gate:gate", output=GateDecision, needs=(EVALUATE,))
REGISTER = Step(
    name="register",
    target="pipelines.registry:register",
    output=ModelVersion,
    needs=(EXPORT, EVALUATE, GATE),
)

TARGET = Step(name="target", target="pipelines.registry:target", output=ModelVersion)
PROMOTE = Step(
    name="promote",
    target="serving.promote:promote",
    output=Deployment,
    environment="ml",
    needs=(TARGET,),
    gpu=True,
)

RETRAIN: tuple[Step[Any], ...] = (DOWNLOAD, PREPARE, FINETUNE, EXPORT, EVALUATE, GATE, REGISTER)
"""From a base model to a registered candidate."""

REDEPLOY: tuple[Step[Any], ...] = (TARGET, PROMOTE)
"""From the alias `approved` to what serves."""

STEPS: dict[str, Step[Any]] = {step.name: step for step in (*RETRAIN, *REDEPLOY)}
