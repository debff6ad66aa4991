"""Model versions in MLflow, by reference: nothing is copied. Five aliases, one meaning each.

candidate   passed the gate
approved    what should serve: a person's word, in Airflow or on the MLflow page
serving     what answers requests now, moved while they are held: during the watch another one than `champion`
champion    what has proven that it serves; only promotion moves it, after the watch, and never back
previous    what was champion before it
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

from pipelines import tracking
from pipelines.artifacts import GateDecision, ModelVersion
from pipelines.config import Config
from pipelines.errors import BadInput, Unreachable
from pipelines.evaluation import EvalReport
from pipelines.exported import QuantizedModel
from pipelines.page.place import PLACE
from pipelines.reports import read_report
from pipelines.run import Run
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as Registered

Alias = Literal["candidate", "approved", "serving", "champion", "previous"]

PATIENCE_SECONDS = 1.0
"""For MLflow to answer while requests are held."""

P = ParamSpec("P")
T = TypeVar("T")


def register(
    config: Config, folder: Path, model: QuantizedModel, report: EvalReport, decision: GateDecision
) -> ModelVersion:
    """Register what was exported as one new version with the alias `candidate`; a rerun finds the version it made.

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
        "images": config.images.model_dump_json(),
        "hardware": config.hardware.model_dump_json(),
        "golden": str(report.golden),
        "run": str(run.root),
        "report": tracking.file_address(tracking_run, PLACE, settings),
        **_base_tags(model),
        **({} if report.golden_digest is None else {"golden_digest": report.golden_digest}),
    }
    registry = Registry(settings, config.registry.model)
    return registry.add(tags, tracking_run)


def _base_tags(model: QuantizedModel) -> dict[str, str]:
    """Of an adapter, what it is served on."""
    if model.served_base_path is None or model.served_base_digest is None:
        return {}
    return {"base_uri": model.served_base_path.as_uri(), "base_digest": model.served_base_digest}


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


def _asks(method: Callable[Concatenate[Registry, P], T]) -> Callable[Concatenate[Registry, P], T]:
    """What asks MLflow: whoever calls it has one error to expect, also where MLflow answers and refuses."""

    @wraps(method)
    def asked(self: Registry, /, *args: P.args, **kwargs: P.kwargs) -> T:
        from mlflow.exceptions import MlflowException

        try:
            return method(self, *args, **kwargs)
        except MlflowException as error:
            raise Unreachable("MLflow", self.uri, error) from error

    return asked


class Registry:
    """One registered model. It is made without asking MLflow, so that who needs it rarely can wait until it answers.

    Raises:
        BadInput: No address is set.
        Unreachable: MLflow does not answer, or refuses; from every method.
    """

    def __init__(self, settings: Settings, model: str) -> None:
        self.model = model
        self.uri = tracking.address(settings)
        self._settings = settings

    @cached_property
    def _client(self) -> MlflowClient:
        return tracking.client(self._settings)

    def by_alias(self, alias: Alias) -> ModelVersion | None:
        """The version behind an alias, or None."""
        number = self.aliases().get(alias)
        return None if number is None else self.version(number)

    @_asks
    def aliases(self) -> dict[str, int]:
        """Every alias and its version."""
        found = self._client.search_registered_models(f"name = '{self.model}'")
        return {alias: int(number) for model in found for alias, number in model.aliases.items()}

    @_asks
    def version(self, number: int) -> ModelVersion:
        """A version by its number.

        Raises:
            BadInput: There is none, or others registered it.
        """
        from mlflow.exceptions import RestException

        try:
            return _model_version(self._client.get_model_version(self.model, str(number)))
        except RestException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        known = ", ".join(f"{alias} v{version}" for alias, version in self.aliases().items()) or "none"
        raise BadInput(f"{self.model} has no version {number}; those with an alias: {known}")

    @_asks
    def tags(self, number: int) -> dict[str, str]:
        """The tags of a version."""
        return dict(self._client.get_model_version(self.model, str(number)).tags)

    @_asks
    def report(self, version: ModelVersion, folder: Path) -> EvalReport:
        """The evaluation that a version was registered with, its answers fetched to `folder`.

        Raises:
            BadInput: It is not whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        fetched = Path(self._client.download_artifacts(version.tracking_run, "evaluate", str(folder)))
        return read_report(fetched)

    @_asks
    def add(self, tags: dict[str, str], tracking_run: str) -> ModelVersion:
        """Make a version, or find the one that the same run made before, and point `candidate` at it."""
        if not self._client.search_registered_models(f"name = '{self.model}'"):
            self._client.create_registered_model(self.model)
        registered = self._made_by(tracking_run) or self._create(tags, tracking_run)
        self._point("candidate", int(registered.version))
        return _model_version(registered)

    @_asks
    def approve(self, version: int, *, reviewer: str, reason: str) -> None:
        """A person's word that a version should serve."""
        self._tag(version, {"review": "approved", "reviewer": reviewer, "review_reason": reason})
        self._point("approved", version)

    @_asks
    def reject(self, version: int, *, reviewer: str, reason: str) -> None:
        """A person's word that a version should not serve."""
        self._tag(version, {"review": "rejected", "reviewer": reviewer, "review_reason": reason})

    @_asks
    def serves(self, version: int | None) -> None:
        """A version answers requests from now on, or none does.

        Raises:
            Unreachable: MLflow does not answer quickly, for requests wait; or refuses.
        """
        tracking.require_answer(self.uri, PATIENCE_SECONDS)
        if version is not None:
            self._point("serving", version)
        elif "serving" in self.aliases():
            self._client.delete_registered_model_alias(self.model, "serving")

    @_asks
    def confirm(self, version: int) -> None:
        """A version has proven that it serves: `previous` names the champion before, then `champion` moves."""
        aliases = self.aliases()
        if aliases.get("serving") != version:  # MLflow was away as it was released
            self._point("serving", version)
        champion = aliases.get("champion")
        if champion == version:
            return
        if champion is not None:
            self._point("previous", champion)
        self._point("champion", version)

    @_asks
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

    @_asks
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
        base_uri=tags.get("base_uri"),
        base_digest=tags.get("base_digest"),
        serving=tags["serving"],
        images=tags.get("images"),
        hardware=tags.get("hardware"),
        golden=tags["golden"],
        golden_digest=tags.get("golden_digest"),
        report=tags.get("report"),
        tracking_run=registered.run_id or "",
    )
