"""Other weights in a running engine: seconds of hold, and never an answer of a model that nobody measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import EngineFailed, PromotionFailed
from pipelines.settings import Settings
from serving.client import served_names
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, resident, running
from serving.strategies.choose import objection
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic


@pytest.fixture
def make(make: Maker) -> Maker:
    """Versions for a card, which differ in their weights alone."""
    return replace(make, device="cuda")


def _promote(machine: Settings, registry: RecordingRegistry, target: Served) -> str:
    return Promotion(machine, registry, target, DOUBLE).run().strategy


def _states(machine: Settings) -> list[str]:
    return [transition.state for transition in DeployLog(machine.serving).read()]


def test_back_and_forth_in_one_engine_under_traffic(
    machine: Settings, registry: RecordingRegistry, make: Maker, start_front: Callable[[float], None]
) -> None:
    start_front(20)
    first, second = make(1), make(2)
    assert _promote(machine, registry, first) == "restart"
    [engine] = running(machine)
    with Traffic(machine, "digits") as traffic:
        assert [_promote(machine, registry, version) for version in (second, first, second)] == ["reload"] * 3
    assert set(traffic.outcomes) == {"answer of v1", "answer of v2"}
    assert running(machine) == {engine: second.log(machine)}
    assert registry.aliases() == {"champion": 2, "previous": 1}
    assert registry.facts(2)["deploy_strategy"] == "reload"


@pytest.mark.parametrize("fault", ["stale", "garbage", "mixed", "refuses"])
def test_a_reload_that_goes_wrong_is_taken_back(
    fault: str, machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    first = make(1)
    _promote(machine, registry, first)
    [engine] = running(machine)
    with pytest.raises(PromotionFailed, match=r"v2 does not serve(.|\n)*v1 serves again"):
        _promote(machine, registry, make(2, reload=fault))
    assert running(machine) == {engine: first.log(machine)}
    assert (registry.champion, list(registry.failed)) == (1, ["2"])
    assert _states(machine)[-4:] == ["reload", "probe", "release", "restored"]


@pytest.mark.parametrize("fault", ["hangs", "exits"])
def test_an_engine_that_does_not_come_out_of_it_is_replaced(
    fault: str, machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    first = make(1)
    _promote(machine, registry, first)
    [engine] = running(machine)
    with pytest.raises(PromotionFailed, match="v1 serves again"):
        _promote(machine, registry, make(2, reload=fault))
    assert list(running(machine).values()) == [first.log(machine)]
    assert engine not in running(machine)


def test_half_of_the_golden_answers_do_not_pass_the_old_weights(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    """With a tolerance, answers that both versions give must not speak for the new one."""
    tolerant = replace(make, serving=make.serving.model_copy(update={"probe_match": 0.5}))
    alike = {f"question {number}": "answer of v1" for number in range(4)}
    second = tolerant(2, answers={**alike, "question 4": "answer of v2", "question 5": "answer of v2"}, reload="stale")
    lines = [json.loads(line) for line in second.golden.read_text().splitlines()]
    answers = [{**line, "answer": alike.get(line["item"], line["answer"])} for line in lines]
    second.golden.write_text("".join(json.dumps(line) + "\n" for line in answers))
    _promote(machine, registry, tolerant(1))
    with pytest.raises(PromotionFailed, match="0 of 2 golden answers that tell it from what served before"):
        _promote(machine, registry, second)
    assert registry.champion == 1


def test_versions_that_no_question_tells_apart_are_restarted(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    _promote(machine, registry, make(1))
    same = {f"question {number}": "answer of v2" for number in range(6)}
    _promote(machine, registry, make(2))
    assert _promote(machine, registry, _with_golden_of(make(3, answers=same), make, 2)) == "restart"


def _with_golden_of(version: Served, make: Maker, other: int) -> Served:
    return version.model_copy(update={"golden": make.folder / f"golden-{other}" / "golden.jsonl"})


def test_what_forbids_it(make: Maker) -> None:
    old, new = make(1), make(2)
    assert objection(old, new) is None
    on_cpu = new.model_copy(update={"hardware": new.hardware.model_copy(update={"device": "cpu"})})
    assert "an engine on a CPU" in str(objection(old, on_cpu))
    longer = new.model_copy(update={"serving": new.serving.model_copy(update={"max_model_len": 512})})
    assert "arguments differ" in str(objection(old, longer))
    closed = old.model_copy(update={"serving": old.serving.model_copy(update={"strategy": "restart"})})
    assert "started with serving.strategy `restart`" in str(objection(closed, new))


def test_another_template_or_another_shape_forbids_it(make: Maker) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from pipelines.system.manifest import write_manifest

    old, new = make(1), make(2)
    save_file({"weight": np.zeros(3, np.int8)}, new.model / "model.safetensors")
    assert objection(old, new) == "1 tensors differ in shape or type, such as weight"
    (new.model / "chat_template.jinja").write_text("{{ other }}")
    write_manifest(new.model)
    assert "only when it starts: chat_template.jinja" in str(objection(old, new))


def test_a_config_that_insists_is_refused_with_the_reason(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    insists = replace(make, serving=make.serving.model_copy(update={"strategy": "reload"}))
    _promote(machine, registry, insists(1))
    other = insists(2)
    other = other.model_copy(update={"serving": other.serving.model_copy(update={"max_num_seqs": 2})})
    with pytest.raises(PromotionFailed, match=r"nothing was touched: (.|\n)*the engine's arguments differ"):
        _promote(machine, registry, other)
    assert registry.champion == 1


def test_an_engine_between_two_versions_is_trusted_by_nobody(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    first = make(1)
    _promote(machine, registry, first)
    [(engine, log)] = running(machine).items()
    log.replace(Path(log.parent) / "between-versions.log")
    assert resident(machine) is None
    _promote(machine, registry, first)
    assert engine not in running(machine)
    assert served_names(machine.engine_url) == ("digits",)


def test_only_an_engine_that_may_be_reloaded_bears_no_version(make: Maker) -> None:
    version = make(7)
    assert version.launch(DOUBLE).names == ("digits",)
    settled = version.model_copy(update={"serving": version.serving.model_copy(update={"strategy": "restart"})})
    assert settled.launch(DOUBLE).names == ("digits", "digits-v7")


def test_the_double_opens_its_own_endpoints_as_vllm_does(make: Maker, tmp_path: Path) -> None:
    from serving.client import command
    from serving.engine import engine

    closed = replace(make(1).launch(DOUBLE), reloadable=False)
    with engine(closed, tmp_path / "engine.log") as started:
        started.wait_ready(10)
        with pytest.raises(EngineFailed, match="404"):
            command(started.url, "/pause?mode=wait", 5)
