"""Another adapter in a running engine: its base stays, and no answer comes from an adapter that nobody measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipelines.errors import BadInput, EngineFailed, PromotionFailed
from pipelines.settings import Settings
from pipelines.system.manifest import ManifestMismatch, write_manifest
from serving.adapter import read_adapter
from serving.client import command, served_names
from serving.engine import engine
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, resident, running
from serving.strategies.choose import objection
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.registry_double import RecordingRegistry
from tests.serving.traffic import Traffic


@pytest.fixture
def make(make: Maker) -> Maker:
    """Versions that are adapters on one base."""
    return replace(make, adapters=True)


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
        assert [_promote(machine, registry, version) for version in (second, first, second)] == ["adapter"] * 3
    assert set(traffic.outcomes) == {"answer of v1", "answer of v2"}
    assert running(machine) == {engine: second.log(machine)}
    assert registry.aliases() == {"champion": 2, "previous": 1}
    assert registry.facts(2)["deploy_strategy"] == "adapter"


@pytest.mark.parametrize("fault", ["stale", "garbage", "mixed", "refuses"])
def test_a_load_that_goes_wrong_is_taken_back(
    fault: str, machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    first = make(1)
    _promote(machine, registry, first)
    [engine] = running(machine)
    with pytest.raises(PromotionFailed, match=r"v2 does not serve(.|\n)*v1 serves again"):
        _promote(machine, registry, make(2, reload=fault))
    assert running(machine) == {engine: first.log(machine)}
    assert (registry.champion, list(registry.failed)) == (1, ["2"])
    assert _states(machine)[-4:] == ["adapter", "probe", "release", "restored"]
    assert served_names(machine.engine_url) == ("digits-base", "digits")


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


def test_a_version_that_breaks_while_it_is_watched_is_taken_back_in_the_same_engine(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    strict = replace(make, serving=make.serving.model_copy(update={"watch_match": 1.0}))
    first, asked_before_the_watch_ends = strict(1), 4 * 6
    _promote(machine, registry, first)
    [engine] = running(machine)
    with pytest.raises(PromotionFailed, match=r"5 of 6 golden answers came again(.|\n)*v1 serves again"):
        _promote(machine, registry, strict(2, "drop", at=asked_before_the_watch_ends + 1))
    assert running(machine) == {engine: first.log(machine)}


def test_a_damaged_adapter_is_refused_before_anything_is_touched(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    _promote(machine, registry, make(1))
    second = make(2)
    assert second.adapter is not None
    with (second.adapter.path / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(PromotionFailed, match="nothing was touched"):
        _promote(machine, registry, second)
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


def test_what_forbids_it(make: Maker) -> None:
    old, new = make(1), make(2)
    assert objection(old, new) is None
    assert "another base" in str(objection(old.model_copy(update={"digest": "0" * 64}), new))
    longer = new.model_copy(update={"serving": new.serving.model_copy(update={"max_model_len": 512})})
    assert "arguments differ" in str(objection(old, longer))
    closed = old.model_copy(update={"serving": old.serving.model_copy(update={"strategy": "restart"})})
    assert "started with serving.strategy `restart`" in str(objection(closed, new))
    assert old.adapter is not None
    wide = old.adapter.model_copy(update={"loading": old.adapter.loading.model_copy(update={"max_rank": 16})})
    assert "no place for the adapter of v2" in str(objection(old.model_copy(update={"adapter": wide}), new))
    reloads = new.model_copy(update={"serving": new.serving.model_copy(update={"strategy": "reload"})})
    assert "goes into a running engine by `adapter`" in str(objection(old, reloads))


def test_a_whole_model_and_an_adapter_do_not_share_an_engine(
    machine: Settings, registry: RecordingRegistry, make: Maker
) -> None:
    whole, adapter = replace(make, adapters=False, device="cuda")(1), make(2)
    assert "v1 is a whole model" in str(objection(whole, adapter))
    assert "is an adapter on a base" in str(objection(adapter, whole))
    assert [_promote(machine, registry, version) for version in (whole, adapter, whole)] == ["restart"] * 3


def test_an_adapter_says_how_it_is_to_be_served(make: Maker, tmp_path: Path) -> None:
    launch = make(7).launch(DOUBLE)
    assert launch.names == ("digits",)
    command = launch.command(1)
    assert command[command.index("--served-model-name") + 1] == "digits-base"
    assert command[command.index("--max-lora-rank") + 1] == "8"
    (tmp_path / "peft").mkdir()
    with pytest.raises(BadInput, match="does not say how to serve it"):
        read_adapter(tmp_path / "peft", write_manifest(tmp_path / "peft"))
    with pytest.raises(ManifestMismatch, match="never finished"):
        read_adapter(tmp_path, "0" * 64)


def test_a_settled_engine_takes_no_adapter(make: Maker, tmp_path: Path) -> None:
    settled = replace(make(1).launch(DOUBLE), reloadable=False)
    with engine(settled, tmp_path / "engine.log") as started:
        started.wait_ready(10)
        with pytest.raises(EngineFailed, match="404"):
            command(started.url, "/v1/unload_lora_adapter", 5, {"lora_name": "digits"})


def test_an_adapter_that_is_loaded_already_is_not_loaded_again(make: Maker, tmp_path: Path) -> None:
    version = make(1)
    assert version.adapter is not None
    with engine(version.launch(DOUBLE), tmp_path / "engine.log") as started:
        started.wait_ready(10)
        reply = httpx.post(f"{started.url}/v1/load_lora_adapter", json=version.adapter.request("digits"))
    assert (reply.status_code, "already been loaded" in reply.text) == (400, True)
