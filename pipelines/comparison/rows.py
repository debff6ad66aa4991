"""What is compared, and what was found: the files of one scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pipelines.artifact import Artifact
from pipelines.config import Evaluate, Images
from pipelines.config_load import Load
from pipelines.config_serving import Serving
from pipelines.evaluation import Score
from pipelines.hardware import Hardware
from pipelines.load_report import LoadReport
from pipelines.schemes import Name
from pipelines.system.manifest import text_digest

CONTENDER, MEASURED, FAILURE = "contender.json", "measured.json", "failure.json"
"""In the folder of a scheme: what is asked for, what was found, or why nothing was."""

REFERENCE = "bf16"
"""What the others' quality is compared with: the fine-tuned model, merged and not rounded."""

Contestant = Literal[Name, "fp16"]
"""`fp16` is the bf16 model, computed in another type of 16 bits."""

CONTESTANTS: tuple[Contestant, ...] = (*get_args(Name), "fp16")


def exported_as(contestant: Contestant) -> Name:
    """The scheme whose export it serves."""
    return "bf16" if contestant == "fp16" else contestant


class Contender(Artifact):
    """One model to be served and measured."""

    name: Contestant
    model: Path
    digest: str
    """Of its manifest."""

    hardware: Hardware
    images: Images
    serving: Serving
    evaluate: Evaluate
    load: Load
    data: Path
    data_digest: str
    """Of its manifest."""

    questions: int | None
    """So many of the test questions, evenly spread. None: all."""

    def key(self, engine: str) -> str:
        """Digest of everything that decides its measurement, so not of where files lie.

        Args:
            engine: Its version and flags.
        """
        return text_digest(self.model_dump_json(exclude={"model", "data"}), engine)


class Measured(Artifact):
    """What an engine showed with one model."""

    key: str
    """Digest of everything that decides the measurement."""

    engine: str
    answers: Path
    scores: dict[str, Score]
    """Of the test questions, by slice."""

    start_seconds: float
    kv_tokens: int | None
    """That the KV cache holds, as the engine said when it started. None: it did not."""

    load: LoadReport


class Failure(Artifact):
    """Why there is no measurement."""

    reason: str
