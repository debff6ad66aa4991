"""Versions and aliases in a real MLflow: nothing copied, nothing twice, and each alias says one thing."""

from __future__ import annotations

import uuid

import pytest

from pipelines.errors import BadInput, Unreachable
from pipelines.registry import Registry, register, target
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, EXPORT, REGISTER
from pipelines.tracking import client
from tests.pipelines.finished_run import config, decide, evaluated_run


@pytest.fixture
def model() -> str:
    return f"m-{uuid.uuid4().hex[:8]}"


def register_run(run: Run) -> int:
    run.folder(REGISTER).mkdir(exist_ok=True)
    decision = decide(run, "pass")
    version = register(run.config, run.folder(REGISTER), run.read(EXPORT), run.read(EVALUATE), decision)
    return version.version


@pytest.fixture
def registry(tracked: Settings, model: str) -> Registry:
    """A registered model with three versions."""
    for name in ("one", "two", "three"):
        register_run(evaluated_run(tracked, name, model))
    return Registry(tracked, model)


def test_a_version_names_its_artefact_and_how_to_serve_it(tracked: Settings, model: str) -> None:
    run = evaluated_run(tracked, "one", model)
    number = register_run(run)
    registry = Registry(tracked, model)
    version = registry.by_alias("candidate")
    assert version is not None
    assert version.version == number
    assert version.uri == run.read(EXPORT).path.as_uri()
    assert version.digest == run.read(EXPORT).digest
    assert version.serving == run.config.serving.model_dump_json()
    tags = registry.tags(number)
    assert (tags["gate"], tags["scheme"], tags["run"]) == ("pass", "int8_w8a8", str(run.root))


def test_registering_again_makes_no_second_version(tracked: Settings, model: str) -> None:
    run = evaluated_run(tracked, "one", model)
    assert register_run(run) == register_run(run)
    assert len(client(tracked).search_model_versions(f"name = '{model}'")) == 1


def test_a_death_between_version_and_alias_is_mended_by_a_rerun(
    tracked: Settings, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated_run(tracked, "one", model)

    def die(self: Registry, alias: str, version: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_point", die)
        with pytest.raises(KeyboardInterrupt):
            register_run(run)
    assert Registry(tracked, model).aliases() == {}
    number = register_run(run)
    assert Registry(tracked, model).aliases() == {"candidate": number}
    assert len(client(tracked).search_model_versions(f"name = '{model}'")) == 1


def test_an_unreachable_server_fails_with_its_address(dead: Settings, model: str) -> None:
    run = evaluated_run(dead, "one", model)
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9"):
        register_run(run)


def test_no_address_is_bad_input(settings: Settings, model: str) -> None:
    with pytest.raises(BadInput, match="VLMOPS_MLFLOW_URI"):
        Registry(settings, model)


def test_an_unknown_model_has_no_aliases(tracked: Settings) -> None:
    assert Registry(tracked, "never-registered").by_alias("champion") is None


def test_the_approved_version_is_the_target(registry: Registry, model: str, tracked: Settings) -> None:
    with pytest.raises(BadInput, match=r"no version of .* is approved"):
        target(config(model), tracked.home)
    registry.approve(2, reviewer="ann", reason="reads sevens")
    assert target(config(model), tracked.home).version == 2
    assert registry.tags(2)["review_reason"] == "reads sevens"


def test_a_rejected_version_is_tagged_and_no_alias_moves(registry: Registry) -> None:
    before = registry.aliases()
    registry.reject(3, reviewer="ann", reason="confuses 1 and 7")
    assert registry.aliases() == before
    assert registry.tags(3)["review"] == "rejected"


def test_confirming_moves_champion_and_remembers_the_previous(registry: Registry) -> None:
    registry.confirm(1)
    registry.confirm(2)
    assert {k: v for k, v in registry.aliases().items() if k != "candidate"} == {"champion": 2, "previous": 1}
    registry.confirm(2)  # again changes nothing
    assert registry.aliases()["previous"] == 1


def test_a_failed_version_gives_approved_back_to_the_champion(registry: Registry) -> None:
    registry.confirm(1)
    registry.approve(2, reviewer="ann", reason="")
    registry.mark_failed(2, "probe matched 0 of 8")
    aliases = registry.aliases()
    assert (aliases["approved"], aliases["champion"]) == (1, 1)
    assert registry.tags(2)["deploy_failed"] == "probe matched 0 of 8"


def test_a_failed_first_version_leaves_nothing_approved(registry: Registry) -> None:
    registry.approve(1, reviewer="ann", reason="")
    registry.mark_failed(1, "did not start")
    assert "approved" not in registry.aliases()


def test_an_approval_that_came_later_is_kept(registry: Registry) -> None:
    registry.confirm(1)
    registry.approve(3, reviewer="ann", reason="")
    registry.mark_failed(2, "did not start")
    assert registry.aliases()["approved"] == 3


def test_a_champions_report_comes_back_from_mlflow(registry: Registry, tracked: Settings) -> None:
    version = registry.version(1)
    report = registry.report(version, tracked.home / "fetched")
    candidate = report.subject("candidate")
    assert candidate is not None
    assert candidate.answers.is_relative_to(tracked.home / "fetched")
    assert candidate.answers.is_file()


def test_a_version_made_by_others_is_refused(tracked: Settings, model: str) -> None:
    mlflow = client(tracked)
    mlflow.create_registered_model(model)
    mlflow.create_model_version(model, source="s3://models/foreign")
    with pytest.raises(BadInput, match="not registered by vlmops"):
        Registry(tracked, model).version(1)
