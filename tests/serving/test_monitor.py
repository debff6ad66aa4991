"""The monitor: one look at a real front and an engine double, what it keeps and tells, and what it does when blind."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import httpx
import psutil
import pytest
import uvicorn
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipelines.alerts.notify import Memory, read_alerts
from pipelines.answers import write_answers
from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.config_monitoring import Inputs, RetrainPolicy
from pipelines.errors import BAD_INPUT, DONE, FAILED, EngineBusy
from pipelines.evaluation import Answer, EvalReport, Evaluation
from pipelines.keys.store import add_key
from pipelines.monitoring.days import Days
from pipelines.monitoring.place import Place
from pipelines.monitoring.samples import ImageFacts, Sample, values
from pipelines.monitoring.snapshot import Snapshot
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import EVALUATE, PREPARE
from pipelines.system.processes import free_port, wait_until
from serving import front, monitor
from serving.monitor_expose import Latest
from serving.monitor_gpu import Cards
from serving.monitor_inputs import compare_inputs, reference
from serving.monitor_look import Look
from serving.monitor_scrape import front_facts, scrape
from serving.monitor_tap import Tap
from serving.promote import Promotion
from serving.served import read_served, write_served
from tests.pipelines.monitoring.expressions import asked_of
from tests.serving.conftest import DOUBLE, Maker
from tests.serving.nvml_double import Event, NvmlDouble
from tests.serving.registry_double import RecordingRegistry

EPOCH = datetime.fromtimestamp(0, UTC)
QUESTION = {"model": "digits", "messages": [{"role": "user", "content": [{"type": "text", "text": "question 1"}]}]}


@pytest.fixture
def backup() -> list[datetime | None]:
    """The time of the last backup; a test may change it."""
    return [datetime.now(UTC)]


@contextmanager
def watching(settings: Settings, config: Config, nvml: Any, backup: list[datetime | None]) -> Iterator[monitor.Monitor]:
    """A monitor whose cards are played."""
    with Cards(nvml).opened() as cards:
        look = Look(settings, config.monitoring, cards, lambda _: backup[0])
        yield monitor.Monitor(Place.of(settings), config, look, Latest())


def serve(machine: Settings, registry: RecordingRegistry, make: Maker, version: int, fault: str = "") -> None:
    Promotion(machine, registry, make(version, fault), DOUBLE).run()


def test_a_look_sees_what_serves_and_keeps_it(
    machine: Settings, smoke: Config, registry: RecordingRegistry, make: Maker, start_front: Callable[..., None],
    backup: list[datetime | None],
) -> None:  # fmt: skip
    start_front(10)
    serve(machine, registry, make, 1)
    key = add_key(machine, "team-a")
    for status in (200, 401):
        headers = {"Authorization": f"Bearer {key if status == 200 else 'wrong'}"}
        asked = httpx.post(f"{machine.front_url}/v1/chat/completions", json=QUESTION, headers=headers)
        assert asked.status_code == status
    with watching(machine, smoke, NvmlDouble(), backup) as watch:
        now, wrong = watch.round()
    assert (now.unknown, [each.name for each in wrong]) == ({}, [])
    assert now.service is not None
    assert (now.service.state, now.service.version, now.service.champion) == ("serving", 1, 1)
    assert now.service.transitions["serving"] == 1
    assert now.probe is not None
    assert (now.probe.asked, now.probe.matched, now.probe.passed) == (6, 6, True)
    assert now.engine is not None
    assert now.engine.rejections is None  # the double does not count them: unknown, not none
    assert now.front is not None
    assert (now.front.answers["200"], now.front.answers["401"]) == (1, 1)
    assert [card.name for card in now.cards] == ["NVIDIA H200"]
    place = Place.of(machine)
    assert place.latest() == now
    (row,) = place.history.since(EPOCH)
    assert row["values"]['vlmops_service_state{state="serving"}'] == 1
    shown = {
        sample.name: sample.value
        for family in text_string_to_metric_families(place.metrics.read_text())
        for sample in family.samples
    }
    assert shown["vlmops_served_version"] == shown["vlmops_champion_version"] == shown["vlmops_probe_passed"] == 1


def test_the_rules_ask_the_front_for_what_it_exports(
    machine: Settings, registry: RecordingRegistry, make: Maker, start_front: Callable[..., None]
) -> None:
    start_front(10)
    serve(machine, registry, make, 1)
    httpx.post(f"{machine.front_url}/v1/chat/completions", json=QUESTION)
    asked = httpx.post(
        f"{machine.front_url}/v1/chat/completions", json=QUESTION,
        headers={"Authorization": f"Bearer {add_key(machine, 'team-a')}"},
    )  # fmt: skip
    assert asked.status_code == 200
    caddy = scrape("Caddy", f"http://127.0.0.1:{machine.ready_port}/metrics")
    keys = scrape("keys", f"http://127.0.0.1:{machine.keys_port}/metrics")
    exported = {sample.name for seen in (caddy, keys) for family in seen.families for sample in family.samples}
    wanted = asked_of("caddy_") | asked_of("vlmops_front_")
    assert len(wanted) >= 3
    assert wanted <= exported
    # Each request counts once, neither by every handler that it passed nor beside Caddy's own health checks.
    assert sum(front_facts(caddy).answers.values()) == 2


def test_a_fault_is_told_and_no_probe_is_wasted(
    machine: Settings, smoke: Config, registry: RecordingRegistry, make: Maker, start_front: Callable[..., None],
    backup: list[datetime | None],
) -> None:  # fmt: skip
    start_front(10)
    serve(machine, registry, make, 1)
    nvml = NvmlDouble(events=[Event(0, 79)])
    with watching(machine, smoke, nvml, backup) as watch:
        first, wrong = watch.round()
        assert [each.name for each in wrong] == ["GpuXid"]
        second, _ = watch.round()
        assert second.probe == first.probe  # not yet time for another
        now = read_served(machine)
        assert now is not None
        now.golden.write_text(now.golden.read_text().replace("answer of v1", "answer of v9"))
        late = Place.of(machine).latest()
        assert late is not None
        assert late.probe is not None
        early = late.probe.model_copy(update={"time": datetime(2026, 1, 1, tzinfo=UTC)})
        third = watch.look.snapshot(late.model_copy(update={"probe": early}))
        assert third.probe is not None
        assert (third.probe.passed, third.probe.matched) == (False, 0)
        assert "answer of" not in third.probe.why  # golden answers may be of people's data
        assert third.probe.last_passed == first.probe.last_passed if first.probe else None
    firing = {known.alert.name for known in read_alerts(Place.of(machine).folder).alerts.values() if known.fired}
    assert firing == {"GpuXid"}


def test_no_probe_pushes_in_where_requests_wait(
    machine: Settings, smoke: Config, registry: RecordingRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(machine, registry, make, 1)
    with Cards(NvmlDouble()).opened() as cards:
        look = Look(machine, smoke.monitoring, cards, lambda _: None)
        quiet = look.snapshot(None)
        assert quiet.engine is not None
        assert quiet.probe is not None
        queue = quiet.engine.model_copy(update={"waiting": 1.0})
        monkeypatch.setattr("serving.monitor_look.engine_facts", lambda _: queue)
        assert look.snapshot(None).probe is None
        queue = quiet.engine
        write_served(machine, make(2))  # released, and not yet through its watch
        assert look.snapshot(None).probe is None


def test_a_probe_that_finds_no_place_leaves_the_last_one(
    machine: Settings, smoke: Config, registry: RecordingRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise EngineBusy("its queue is full")

    serve(machine, registry, make, 1)
    with Cards(NvmlDouble()).opened() as cards:
        look = Look(machine, smoke.monitoring, cards, lambda _: None)
        before = look.snapshot(None)
        assert before.probe is not None
        old = before.model_copy(
            update={"probe": before.probe.model_copy(update={"time": datetime(2026, 1, 1, tzinfo=UTC)})}
        )
        monkeypatch.setattr("serving.monitor_probe.probe", full)
        assert look.snapshot(old).probe == old.probe


def test_a_blind_monitor_says_so_and_raises_no_false_alarm(
    machine: Settings, smoke: Config, backup: list[datetime | None]
) -> None:
    import pynvml

    nvml = NvmlDouble(init=pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    with watching(machine, smoke, nvml, backup) as watch:
        now, wrong = watch.round()
    assert set(now.unknown) == {"engine", "front"}
    assert now.gpu_state == "none"
    assert now.service is not None
    assert now.service.state == "stopped"
    assert wrong == []  # nothing was promoted here yet


@pytest.mark.parametrize("says", [b"<html>Wait</html>", b"", b"vllm:num_requests_running 1\n", b'x{a="b",\t="a"} 1\n'])
def test_what_is_no_metrics_is_unknown(says: bytes) -> None:
    from pipelines.errors import EngineFailed
    from serving.monitor_scrape import engine_facts

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": says})

    with server(app, port := free_port()), pytest.raises(EngineFailed):
        engine_facts(scrape("the engine", f"http://127.0.0.1:{port}/metrics"))


@contextmanager
def server(app: Any, port: int) -> Iterator[None]:
    """An application on loopback."""
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run)
    thread.start()
    wait_until(lambda: running.started, 10, lambda: AssertionError("no server"), 0.02)
    yield
    running.should_exit = True
    thread.join()


def test_what_passes_the_front_is_sampled(machine: Settings, start_front: Callable[..., None]) -> None:
    told = {"choices": [{"message": {"content": "I'm sorry"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    start_front(10)
    front.release(machine)
    place = Place.of(machine)
    key = {"Authorization": f"Bearer {add_key(machine, 'team-a')}"}
    with server(Tap(engine, Inputs(share=1), place), machine.engine_port):
        probed = httpx.post(f"{machine.engine_url}/v1/chat/completions", json=QUESTION)  # by no client
        asked = httpx.post(f"{machine.front_url}/v1/chat/completions", json=QUESTION, headers=key)
        assert probed.json() == asked.json() == told
        wait_until(lambda: any(place.inputs.since(EPOCH)), 30, lambda: AssertionError("no sample"), 0.02)
    (row,) = place.inputs.since(EPOCH)
    assert (row["prompt_tokens"], row["refused"]) == (9, True)


@pytest.fixture
def trained(machine: Settings, smoke: Config) -> Run:
    """A run with a training set of 300 square grey images, and an evaluation."""
    run = Run.create(machine.runs / "r1", smoke)
    data = run.folder(PREPARE) / "data"
    (data / "images").mkdir(parents=True)
    Image.new("L", (100, 100), 128).save(data / "images" / "a.png")
    row = {"id": "1", "slice": "digits", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The digit is 7."}]},
    ]}  # fmt: skip
    (data / "train.jsonl").write_text((json.dumps(row) + "\n") * 300)
    answers = run.folder(EVALUATE) / "answers.parquet"
    answers.parent.mkdir()
    write_answers(answers, [
        Answer(item=f"{n}", slice="digits", expected="7", text="7", finish_reason="stop", seconds=1, prompt_tokens=50,
               answer_tokens=5)
        for n in range(300)
    ])  # fmt: skip
    dataset = Dataset(
        path=data, digest="d", test_digest="t", rows={"train": 300}, slices={}, rejects=(), tokens=(), visual_share=0.5
    )
    measured = Evaluation(
        subject="candidate", model_digest="c", scheme="bf16", answers=answers, scores={}, start_seconds=1,
        answer_seconds=1, requests_per_minute=1, latency_p50_ms=1, latency_p99_ms=1, peak_gib=1,
    )  # fmt: skip
    report = EvalReport(
        engine="e", test_digest="t", prompt_digest="p", evaluations=(measured,),
        golden=run.folder(EVALUATE) / "golden" / "golden.jsonl",
    )  # fmt: skip
    for step, artifact in ((PREPARE, dataset), (EVALUATE, report)):
        for need in step.needs:
            (run.folder(need)).mkdir(exist_ok=True)
            (run.folder(need) / "output.json").is_file() or _stand_in(run, need)
        run.write(step, artifact, seconds=1, peak_gib=1)
    return run


def _stand_in(run: Run, step: Any) -> None:
    base = BaseSnapshot.model_construct()
    record = {"inputs": "", "artifact": base.model_dump(), "seconds": 1, "peak_gib": 1}
    (run.folder(step) / "output.json").write_text(json.dumps(record))


def test_inputs_that_change_are_seen_and_a_retrain_is_asked_for(
    machine: Settings, smoke: Config, make: Maker, trained: Run, backup: list[datetime | None]
) -> None:
    golden = trained.read(EVALUATE).golden
    golden.parent.mkdir()
    version = make(1).model_copy(update={"golden": golden})
    machine.serving.mkdir(parents=True)
    write_served(machine, version)
    place = Place.of(machine)
    known = reference(place, version, Inputs())
    assert values(known, "megapixels") == [0.01] * 300
    assert values(known, "prompt_tokens") == [50] * 300
    moment = datetime.now(UTC).timestamp()
    for number in range(250):
        wide = ImageFacts(megapixels=0.01, aspect=3 if number % 2 else 1, brightness=128 / 255)
        sample = Sample(time=moment, images=(wide,), prompt_tokens=50, answer_tokens=5, refused=False)
        place.inputs.append(sample.model_dump())
    policy = RetrainPolicy(on="input_changed", checks=2)
    inputs = Inputs(compare_minutes=1e-6)
    watched = smoke.monitoring.model_copy(update={"retrain": policy, "inputs": inputs})
    config = smoke.model_copy(update={"monitoring": watched})
    with watching(machine, config, NvmlDouble(), backup) as watch:
        now, wrong = watch.round()
        assert {each.feature for each in now.inputs if each.changed} == {"aspect"}
        assert {each.feature for each in now.inputs} == {
            "megapixels", "aspect", "brightness", "prompt_tokens", "answer_tokens", "refused",
        }  # fmt: skip
        assert now.rates == {"refused": 0}
        assert [each.name for each in wrong] == ["InputChanged"]
        assert place.asking().reason is None
        watch.round()
    assert (place.asking().reason or "").startswith("input changed: aspect (PSI ")
    kept = place.latest()
    assert kept is not None
    with Cards(NvmlDouble()).opened() as cards:
        look = Look(machine, smoke.monitoring, cards, lambda _: None)
        assert look.snapshot(kept).compared == kept.compared  # an hour is not over
        write_served(machine, version.model_copy(update={"digest": "0" * 64}))
        assert look.snapshot(kept).compared != kept.compared
    write_served(machine, version)
    trained.root.rename(trained.root.with_name("gone"))
    assert len(reference(place, version, Inputs())) == 600  # kept since


def test_many_images_in_few_requests_are_no_evidence(machine: Settings, make: Maker, trained: Run) -> None:
    golden = trained.read(EVALUATE).golden
    golden.parent.mkdir()
    version = make(1).model_copy(update={"golden": golden})
    wide = ImageFacts(megapixels=0.01, aspect=3, brightness=128 / 255)
    batch = [Sample(time=1, images=(wide,) * 20)] * 15
    (aspect,) = (
        each for each in compare_inputs(Place.of(machine), version, Inputs(), batch) if each.feature == "aspect"
    )
    assert (aspect.n, aspect.enough, aspect.changed) == (15, False, False)


def test_a_version_of_no_run_leaves_inputs_unknown_and_says_why(
    machine: Settings, smoke: Config, make: Maker, backup: list[datetime | None]
) -> None:
    machine.serving.mkdir(parents=True)
    write_served(machine, make(1))
    Place.of(machine).inputs.append(Sample(time=datetime.now(UTC).timestamp()).model_dump())
    with watching(machine, smoke, NvmlDouble(), backup) as watch:
        now, _ = watch.round()
        again, _ = watch.round()
    assert "has no training set" in now.unknown["inputs"]
    assert again.unknown["inputs"] == now.unknown["inputs"]
    assert again.compared == now.compared  # it did not read a day's samples for that once more


def test_prometheus_asks_while_it_goes_on_looking(machine: Settings, smoke: Config) -> None:
    latest = Latest()
    address = f"127.0.0.1:{free_port()}"
    with latest.listening(address):
        look = Look(machine, smoke.monitoring, Cards(NvmlDouble()), lambda _: None)
        monitor.Monitor(Place.of(machine), smoke, look, latest).round()
        text = httpx.get(f"http://{address}/metrics").text
        assert monitor.main([f"--listen={address}"]) == BAD_INPUT  # taken
    assert "vlmops_service_state" in text
    assert text == Place.of(machine).metrics.read_text()


@pytest.mark.parametrize("address", ["8805", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "host.invalid:1"])
def test_an_address_that_cannot_be_listened_on_is_refused(
    machine: Settings, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor.main([f"--listen={address}"]) == BAD_INPUT
    assert address in capsys.readouterr().err


def test_a_second_monitor_shows_what_the_first_has_seen(
    machine: Settings, smoke: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.of(machine)
    with place.claim():
        place.keep(Snapshot(time=datetime(2026, 11, 24, tzinfo=UTC), gpu_state="none"), [], {})
        assert monitor.main([]) == DONE
        assert "2026-11-24" in capsys.readouterr().out
        assert monitor.main(["--every=1"]) == BAD_INPUT
        assert "another monitor" in capsys.readouterr().err


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_nobody_from_being_told(
    machine: Settings, smoke: Config, backup: list[datetime | None], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    backup[0] = None
    for where in ("pipelines.monitoring.place.write_text", "pipelines.alerts.notify.write_text"):
        monkeypatch.setattr(where, full)
    monkeypatch.setattr(Days, "append", full)
    with watching(machine, smoke, NvmlDouble(events=[Event(0, 79)]), backup) as watch:
        watch.memory = Memory()
        for _ in range(2):
            now, wrong = watch.round()
        assert {each.name for each in wrong} >= {"GpuXid", "BackupTooOld"}
        assert any("No space left" in why for why in watch.unkept)
        assert watch.looks[-1] == now  # what the next look goes by
    assert "FIRING critical GpuXid" in caplog.text
    assert "FIRING warning BackupTooOld" in caplog.text
    assert Place.of(machine).latest() is None


def test_a_day_that_cannot_be_closed_ends_no_watch(
    machine: Settings, smoke: Config, backup: list[datetime | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise ValueError("Parquet magic bytes not found")

    monkeypatch.setattr(Days, "close", damaged)
    with watching(machine, smoke, NvmlDouble(events=[Event(0, 79)]), backup) as watch:
        for _ in range(2):
            watch.round()
        assert watch.unkept == ["Parquet magic bytes not found"]
    assert any(known.fired for known in read_alerts(Place.of(machine).folder).alerts.values())
    assert Place.of(machine).latest() is not None


def test_one_look_that_cannot_be_kept_says_so(machine: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Days, "append", full)
    assert monitor.main([]) == FAILED


def test_a_monitor_that_hangs_is_told_of_by_the_next_one(machine: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place.of(machine)
    with place.claim():
        assert monitor.main([]) == DONE
        early = (datetime.now(UTC) - timedelta(minutes=16)).timestamp()
        os.utime(place.folder / ".lock", (early, early))
        place.keep(Snapshot(time=datetime.now(UTC), gpu_state="none"), [], {})
        for _ in range(2):
            assert monitor.main([]) == FAILED
        assert "MonitorSilent" in capsys.readouterr().out
        (tracked,) = read_alerts(place.folder).alerts.values()
        assert (tracked.alert.name, tracked.fired is not None) == ("MonitorSilent", True)
        place.looked()
        assert monitor.main([]) == DONE


def test_what_a_blind_look_cannot_judge_stays_as_it_was(
    machine: Settings, smoke: Config, backup: list[datetime | None]
) -> None:
    import pynvml

    nvml = NvmlDouble(events=[Event(0, 79)])
    with watching(machine, smoke, nvml, backup) as watch:
        for _ in range(2):
            watch.round()
    gone = NvmlDouble(init=pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    with watching(machine, smoke, gone, backup) as watch:
        for _ in range(5):
            watch.round()
    firing = {known.alert.name for known in read_alerts(Place.of(machine).folder).alerts.values() if known.fired}
    assert firing == {"GpuXid", "GpuUnknown"}


@pytest.mark.parametrize("fault", [KeyError("messages"), TypeError("None"), ZeroDivisionError(), psutil.AccessDenied()])
def test_a_fault_of_ours_blinds_one_source_alone(
    machine: Settings, smoke: Config, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(_: Settings) -> None:
        raise fault

    monkeypatch.setattr("serving.monitor_look.disks", fail)
    with Cards(NvmlDouble()).opened() as cards:
        now = Look(machine, smoke.monitoring, cards, lambda _: None).snapshot(None)
    assert type(fault).__name__ in now.unknown["disk"]
    assert now.service is not None
    assert now.runs is not None


def test_how_long_the_service_has_been_so_is_remembered(machine: Settings, smoke: Config) -> None:
    with Cards(NvmlDouble()).opened() as cards:
        look = Look(machine, smoke.monitoring, cards, lambda _: None)
        first = look.snapshot(None)
        second = look.snapshot(first)
        assert first.service is not None
        assert second.service is not None
        assert second.service.since == first.service.since == first.time
        other = first.service.model_copy(update={"state": "holding"})
        third = look.snapshot(first.model_copy(update={"service": other})).service
        assert third is not None
        assert third.since != first.time


def test_a_clock_that_was_put_back_stops_no_comparison(machine: Settings, smoke: Config) -> None:
    with Cards(NvmlDouble()).opened() as cards:
        look = Look(machine, smoke.monitoring, cards, lambda _: None)
        ahead = datetime.now(UTC) + timedelta(days=365)
        assert look.snapshot(Snapshot(time=ahead, compared=ahead)).compared != ahead


def test_once_as_a_command(machine: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert monitor.main([]) == DONE
    assert "no GPU here" in capsys.readouterr().out
    assert Place.of(machine).latest() is not None
