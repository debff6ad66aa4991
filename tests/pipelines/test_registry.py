"""Versions and aliases in a real MLflow: nothing copied, nothing twice, and each alias says one thing."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
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
    assert (version.images, version.hardware) == (
        run.config.images.model_dump_json(),
        run.config.hardware.model_dump_json(),
    )
    tags = registry.tags(number)
    assert (tags["gate"], tags["scheme"], tags["run"]) == ("pass", "int8_w8a8", str(run.root))


def test_a_version_that_is_an_adapter_names_its_base_too(tracked: Settings, model: str, tmp_path: Path) -> None:
    run = evaluated_run(tracked, "one", model)
    on_a_base = {"served_base_path": tmp_path, "served_base_digest": "5" * 64}
    beside, decision = run.read(EXPORT).model_copy(update=on_a_base), decide(run, "pass")
    run.folder(REGISTER).mkdir(exist_ok=True)
    version = register(run.config, run.folder(REGISTER), beside, run.read(EVALUATE), decision)
    assert (version.uri, version.base_uri) == (beside.path.as_uri(), tmp_path.as_uri())
    assert Registry(tracked, model).version(version.version).base_digest == "5" * 64


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


@contextmanager
def relay(uri: str) -> Iterator[str]:
    """A server that passes everything on to MLflow, and ends with the block."""

    class Passing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            answer = httpx.request(self.command, uri + self.path, content=content, headers=kind)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_PATCH = do_DELETE = do_GET

        def log_message(self, *args: object) -> None:
            """Nothing: the answers are looked at."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Passing) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


CALLS: dict[str, Callable[[Registry], object]] = {
    "by_alias": lambda registry: registry.by_alias("champion"),
    "version": lambda registry: registry.version(1),
    "tags": lambda registry: registry.tags(1),
    "approve": lambda registry: registry.approve(1, reviewer="ann", reason=""),
    "reject": lambda registry: registry.reject(1, reviewer="ann", reason=""),
    "serves": lambda registry: registry.serves(1),
    "confirm": lambda registry: registry.confirm(1),
    "mark_failed": lambda registry: registry.mark_failed(1, "did not start"),
    "record": lambda registry: registry.record(1, {"deploy_state": "watched"}),
}


def test_a_server_that_ends_is_unreachable_to_every_call(
    tracked: Settings, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_run(evaluated_run(tracked, "one", model))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with relay(str(tracked.mlflow_uri)) as uri:
        registry = Registry(tracked.model_copy(update={"mlflow_uri": uri}), model)
        for call in CALLS.values():
            call(registry)
    for name, call in CALLS.items():
        with pytest.raises(Unreachable, match=f"MLflow at {uri}"):
            pytest.fail(f"{name}: {call(registry)}")


def test_what_mlflow_refuses_has_the_same_name_and_its_reason(registry: Registry) -> None:
    with pytest.raises(Unreachable, match="RESOURCE_DOES_NOT_EXIST"):
        registry.record(99, {"deploy_state": "watched"})


def test_a_registry_can_be_made_before_mlflow_answers(dead: Settings, model: str) -> None:
    registry = Registry(dead, model)
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9"):
        registry.aliases()


def test_an_unknown_version_is_told_with_those_that_have_an_alias(registry: Registry, model: str) -> None:
    with pytest.raises(BadInput, match=f"{model} has no version 99; those with an alias: candidate v3"):
        registry.version(99)


def test_golden_answers_are_registered_by_their_digest_and_old_ones_without(tracked: Settings, model: str) -> None:
    for name, digest in (("old", None), ("new", "9" * 64)):
        run = evaluated_run(tracked, name, model)
        report = run.read(EVALUATE).model_copy(update={"golden_digest": digest})
        run.folder(REGISTER).mkdir()
        made = register(run.config, run.folder(REGISTER), run.read(EXPORT), report, decide(run, "pass"))
        assert made.golden_digest == digest
        assert Registry(tracked, model).version(made.version).golden_digest == digest


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
    others = {"candidate", "serving"}
    assert {k: v for k, v in registry.aliases().items() if k not in others} == {"champion": 2, "previous": 1}
    registry.confirm(2)  # again changes nothing
    assert registry.aliases()["previous"] == 1


def test_what_serves_is_named_before_it_is_confirmed_and_no_longer_when_nothing_serves(registry: Registry) -> None:
    registry.confirm(1)
    registry.serves(2)
    aliases = registry.aliases()
    assert (aliases["serving"], aliases["champion"]) == (2, 1)
    registry.serves(None)
    registry.serves(None)  # again changes nothing
    with pytest.raises(Unreachable):
        registry.serves(99)  # was deleted on the page
    assert "serving" not in registry.aliases()
    registry.confirm(1)
    assert registry.aliases()["serving"] == 1


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
