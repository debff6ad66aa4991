"""Model versions in MLflow, by reference: nothing is copied. Four aliases, one meaning each.

candidate   passed the gate
approved    what should serve: a person's word, in Airflow or on the MLflow page
champion    what does serve; only promotion moves it, last
previous    what served before it
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines import tracking
from pipelines.artifacts import GateDecision, ModelVersion
from pipelines.config import Config
from pipelines.errors import BadInput
from pipelines.evaluation import EvalReport
from pipelines.exported import QuantizedModel
from pipelines.page.place import PLACE
from pipelines.reports import read_report
from pipelines.run import Run
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as Registered

Alias = Literal["candidate", "approved", "champion", "previous"]


def register(
    config: Config, folder: Path, model: QuantizedModel, report: EvalReport, decision: GateDecision
) -> ModelVersion:
    """Register the exported model as one new version with the alias `candidate`; a rerun finds the version it made.

    Raises:
        Unreachable: MLflow does not answer; a rerun registers exactly one version.
    """
    run = Run(folder.parent)
    settings = Settings()
    tracking_run = tracking.publish(run, settings)
    tags = {
        "uri": model.path.as_uri(),
        "digest": model.digest,
        "scheme": model.scheme,
        "gate": decision.outcome,
        "reference": decision.reference,
        "serving": config.serving.model_dump_json(),
        "golden": str(report.golden),
        "run": str(run.root),
        "report": tracking.file_address(tracking_run, PLACE, settings),
    }
    registry = Registry(settings, config.registry.model)
    return registry.add(tags, tracking_run)


def target(config: Config, folder: Path) -> ModelVersion:  # noqa: ARG001  every step has the folder
    """What should serve: the version behind `approved`.

    Raises:
        BadInput: No version is approved.
    """
    registry = Registry(Settings(), config.registry.model)
    approved = registry.by_alias("approved")
    if approved is None:
        raise BadInput(
            f"no version of {config.registry.model} is approved; approve one in Airflow or on its MLflow page"
        )
    return approved


class Registry:
    """One registered model.

    Raises:
        Unreachable: MLflow does not answer.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self._client = tracking.client(settings)

    def by_alias(self, alias: Alias) -> ModelVersion | None:
        """The version behind an alias, or None."""
        number = self.aliases().get(alias)
        return None if number is None else self.version(number)

    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""
        found = self._client.search_registered_models(f"name = '{self.model}'")
        return {alias: int(number) for model in found for alias, number in model.aliases.items()}

    def version(self, number: int) -> ModelVersion:
        """A version by its number."""
        return _model_version(self._client.get_model_version(self.model, str(number)))

    def tags(self, number: int) -> dict[str, str]:
        """The tags of a version."""
        return dict(self._client.get_model_version(self.model, str(number)).tags)

    def report(self, version: ModelVersion, folder: Path) -> EvalReport:
        """The evaluation that a version was registered with, its answers fetched to `folder`.

        Raises:
            BadInput: It is not whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        fetched = Path(self._client.download_artifacts(version.tracking_run, "evaluate", str(folder)))
        return read_report(fetched)

    def add(self, tags: dict[str, str], tracking_run: str) -> ModelVersion:
        """Make a version, or find the one that the same run made before, and point `candidate` at it."""
        if not self._client.search_registered_models(f"name = '{self.model}'"):
            self._client.create_registered_model(self.model)
        registered = self._made_by(tracking_run) or self._create(tags, tracking_run)
        self._point("candidate", int(registered.version))
        return _model_version(registered)

    def approve(self, version: int, *, reviewer: str, reason: str) -> None:
        """A person's word that a version should serve."""
        self._tag(version, {"review": "approved", "reviewer": reviewer, "review_reason": reason})
        self._point("approved", version)

    def reject(self, version: int, *, reviewer: str, reason: str) -> None:
        """A person's word that a version should not serve."""
        self._tag(version, {"review": "rejected", "reviewer": reviewer, "review_reason": reason})

    def confirm(self, version: int) -> None:
        """A version serves: `previous` names what served before, then `champion` moves."""
        champion = self.aliases().get("champion")
        if champion == version:
            return
        if champion is not None:
            self._point("previous", champion)
        self._point("champion", version)

    def mark_failed(self, version: int, reason: str) -> None:
        """A version could not serve: say why on it, and let `approved` name again what does serve."""
        self._tag(version, {"deploy_failed": reason[:5000]})
        aliases = self.aliases()
        if aliases.get("approved") != version:
            return
        if "champion" in aliases and aliases["champion"] != version:
            self._point("approved", aliases["champion"])
        else:
            self._client.delete_registered_model_alias(self.model, "approved")

    def record(self, version: int, facts: dict[str, str]) -> None:
        """What a promotion says about a version: `deploy_state`, `deploy_strategy`, `hold_seconds`."""
        self._tag(version, facts)

    def _made_by(self, tracking_run: str) -> Registered | None:
        found = self._client.search_model_versions(f"name = '{self.model}' and run_id = '{tracking_run}'")
        return found[0] if found else None

    def _create(self, tags: dict[str, str], tracking_run: str) -> Registered:
        # A server refuses a version whose source is a folder of ours; a logged model without files is its stand-in.
        experiment = self._client.get_run(tracking_run).info.experiment_id
        logged = self._client.create_logged_model(
            experiment, name=self.model, source_run_id=tracking_run, tags=tags, model_type="vlmops"
        )
        self._client.finalize_logged_model(logged.model_id, "READY")
        return self._client.create_model_version(
            self.model,
            source=f"models:/{logged.model_id}",
            run_id=tracking_run,
            model_id=logged.model_id,
            tags=tags,
            description=f"[Report: what the gate saw]({tags['report']})",  # MLflow makes no link of a tag
        )

    def _point(self, alias: Alias, version: int) -> None:
        self._client.set_registered_model_alias(self.model, alias, str(version))

    def _tag(self, version: int, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(self.model, str(version), key, value)


def _model_version(registered: Registered) -> ModelVersion:
    tags = registered.tags
    if missing := {"uri", "digest", "serving", "golden"} - tags.keys():
        raise BadInput(
            f"{registered.name} v{registered.version} was not registered by vlmops: tags {sorted(missing)} are missing"
        )
    return ModelVersion(
        name=registered.name,
        version=int(registered.version),
        uri=tags["uri"],
        digest=tags["digest"],
        serving=tags["serving"],
        golden=tags["golden"],
        report=tags.get("report"),
        tracking_run=registered.run_id or "",
    )
