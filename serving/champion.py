"""The champion as one more subject: asked anew where its registered report answers other questions than this run's.

So a new scenario pack, new test items or another engine leave a way to compare. Where its report still fits, as it
mostly does, nothing is measured twice. Whatever stands in the way is noted in the report for the gate: the candidate's
own measurement stays good, and the gate then compares with the registered report or says what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Protocol

from pipelines.artifacts import ModelVersion
from pipelines.config import Config
from pipelines.errors import BadInput, EngineFailed, Unreachable, VlmopsError
from pipelines.evaluation import EvalReport, Evaluation
from pipelines.system.manifest import ManifestMismatch
from serving.adapter import Files, files_of
from serving.questions import prompt_digest
from serving.subjects import Subject

log = logging.getLogger(__name__)

OTHER_WAYS = "promote another version, or take the alias champion off it in MLflow: then the base is the reference"
"""What to do where the champion cannot be asked any more."""


class Versions(Protocol):
    """What is asked of the registry."""

    def by_alias(self, alias: Literal["champion"]) -> ModelVersion | None:
        """The version behind an alias, or None."""

    def tags(self, number: int) -> dict[str, str]:
        """The tags of a version."""

    def report(self, version: ModelVersion, folder: Path) -> EvalReport:
        """The evaluation that a version was registered with."""


@dataclass(frozen=True)
class Asked:
    """What two evaluations must have in common to be compared."""

    test_digest: str
    prompt_digest: str
    scenarios: frozenset[tuple[str, str]]
    """Names and digests."""

    engine: str

    @classmethod
    def of(cls, report: EvalReport) -> Asked:
        """What a report answers, and how."""
        scenarios = frozenset((scenario.name, scenario.digest) for scenario in report.scenarios)
        return cls(report.test_digest, report.prompt_digest, scenarios, report.engine)


def with_champion(
    config: Config, report: EvalReport, open_registry: Callable[[], Versions], measured: Callable[[Subject], Evaluation]
) -> EvalReport:
    """The report, with the champion's answers where it needs them, or with why it has none.

    Args:
        report: Of this run, without the champion.
        open_registry: Raises `Unreachable` or `BadInput` where there is none.
        measured: Measures a subject, or finds its record.

    Raises:
        EvaluationInvalid: Requests were lost, and again on every repetition.
    """
    try:
        subject = champion_to_ask(config, report, open_registry())
        if subject is None:
            return report
        return report.model_copy(update={"evaluations": (*report.evaluations, measured(subject))})
    except (BadInput, EngineFailed, Unreachable) as error:
        log.warning("the champion is not asked beside the candidate: %s", error)
        return report.model_copy(update={"champion_unmeasured": _reason(error)})


def _reason(error: VlmopsError) -> str:
    """On one line: an engine's own words end in those of its log."""
    first = str(error).partition("\n")[0].removesuffix(":")
    return f"{first}; {OTHER_WAYS}" if isinstance(error, EngineFailed) else first


def champion_to_ask(config: Config, report: EvalReport, registry: Versions) -> Subject | None:
    """The champion as it is registered, or None: there is none, or its report can be compared with this one.

    Raises:
        BadInput: It cannot be asked what the candidate was asked; says why, and what to do.
        Unreachable: MLflow does not answer.
    """
    champion = registry.by_alias("champion")
    if champion is None or _registered(registry, champion) == Asked.of(report):
        return None
    files = _whole_files(champion)
    if prompt_digest(files.model, config.images, config.evaluate.max_new_tokens) != report.prompt_digest:
        raise BadInput(f"champion v{champion.version} has another chat template than the candidate; {OTHER_WAYS}")
    log.info("champion v%d was registered with other questions or another engine; it is asked too", champion.version)
    scheme = registry.tags(champion.version)["scheme"]
    return Subject("champion", files.model, files.digest, scheme, adapter=files.adapter)


def _registered(registry: Versions, champion: ModelVersion) -> Asked | None:
    with TemporaryDirectory() as folder:
        try:
            return Asked.of(registry.report(champion, Path(folder)))
        except BadInput as error:
            log.warning("the report that champion v%d was registered with is of no use: %s", champion.version, error)
            return None


def _whole_files(champion: ModelVersion) -> Files:
    try:
        files = files_of(champion)
        files.verify()
    except (BadInput, ManifestMismatch) as error:
        raise BadInput(
            f"champion v{champion.version} is not whole at {champion.uri} ({error}); put its files back and evaluate "
            f"again, {OTHER_WAYS}"
        ) from None
    return files
