"""What is no fault of a version goes wrong in a promotion: requests that were let wait are answered all the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipelines.artifacts import ModelVersion
from pipelines.config import Config
from pipelines.errors import EngineBusy, EngineFailed, PromotionFailed, Unreachable
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.manifest import write_manifest
from pipelines.system.processes import wait_until
from serving import front
from serving.client import Reply, metrics
from serving.golden import golden_digest
from serving.probe import probe
from serving.promote import Promotion
from serving.promotion.deploy_log import DeployLog
from serving.served import Served, read_confirmed, read_served, running, served
from serving.service import status
from serving.strategies import choose
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker
from tests.serving.registry_double import RecordingRegistry

StartFront = Callable[[float], None]
LONG = {
    "model": "digits",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "say much"}]}],
    "stream": True,
}

FRAGILE = """\
import runpy, sys
from pathlib import Path

if "model-2" in sys.argv[1] and Path(__file__).with_name("broken").exists():
    sys.exit("v2 starts no more")
sys.argv[0] = {double!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the double, but not v2 once a file lies beside it."""


@pytest.fixture
def promote(machine: Settings, registry: RecordingRegistry) -> Callable[[Served], object]:
    """Promotes in this process."""
    return lambda target: Promotion(machine, registry, target, DOUBLE).run()


def _with(version: Served, **serving: object) -> Served:
    return version.model_copy(update={"serving": version.serving.model_copy(update=serving)})


def _states(machine: Settings) -> list[str]:
    return [transition.state for transition in DeployLog(machine.serving).read()]


def _serves(machine: Settings, registry: RecordingRegistry, version: Served) -> bool:
    """Whether requests reach one engine, and it is this version's by every record."""
    shown = status(machine)
    named = (registry.serving, registry.champion, shown["version"]) == (version.version,) * 3
    one = list(running(machine).values()) == [version.log(machine)]
    return named and one and not shown["holding"] and read_served(machine) == version


def _from(state: str, fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the deploy log fail, from a step of the promotion of v2 on; Ctrl-C comes once."""
    write, failing = DeployLog.write, []

    def write_or_fail(log: DeployLog, version: int | None, now: str, *rest: object) -> None:
        if version == 2 and (now == state or (failing and isinstance(fault, OSError))) and failing != ["done"]:
            failing[:] = ["again" if isinstance(fault, OSError) else "done"]
            raise fault
        write(log, version, now, *rest)

    monkeypatch.setattr(DeployLog, "write", write_or_fail)


@pytest.mark.parametrize("state", ["hold", "drain", "start", "probe", "release", "watch"])
def test_a_disk_that_is_full_leaves_nothing_held_and_nothing_unwatched(
    state: str,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make(1)
    promote(first)
    before = running(machine)
    _from(state, OSError(28, "No space left on device"), monkeypatch)
    with pytest.raises((OSError, PromotionFailed), match="No space left on device"):
        promote(make(2))
    assert _serves(machine, registry, first)
    assert (running(machine) == before) == (state in {"hold", "drain"})


@pytest.mark.parametrize("state", ["hold", "drain", "stop", "probe"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(143)], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_promotion_leaves_what_served_before(
    state: str,
    fault: BaseException,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make(1)
    promote(first)
    _from(state, fault, monkeypatch)
    with pytest.raises(type(fault)):
        promote(make(2))
    assert _serves(machine, registry, first)


def _cut(golden: Path) -> None:
    golden.write_text(golden.read_text()[:-20])


def _lose_an_image(golden: Path) -> None:
    first, *others = golden.read_text().splitlines()
    asked = json.loads(first)
    asked["messages"][0]["content"].append({"type": "image", "image": "images/gone.png"})
    golden.write_text("\n".join([json.dumps(asked), *others]))


def _replace_the_answers(golden: Path) -> None:
    golden.write_text(golden.read_text().replace("answer of v2", "!!!!"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "is missing"),
        (_cut, "holds no golden"),
        (_lose_an_image, "gone.png"),
        (_replace_the_answers, "changed"),
    ],
)
def test_golden_answers_are_read_before_anything_moves(
    spoil: Callable[[Path], None],
    said: str,
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
) -> None:
    first, second = make(1), make(2, "garbage")
    promote(first)
    before = running(machine)
    second = second.model_copy(update={"golden_digest": golden_digest(second.golden)})
    spoil(second.golden)
    with pytest.raises(PromotionFailed, match=f"nothing was touched: .*{said}"):
        promote(second)
    assert _serves(machine, registry, first)
    assert running(machine) == before


def _busy(machine: Settings, version: Served) -> bool:
    try:
        return version.log(machine) in running(machine).values() and metrics(machine.engine_url).running > 0
    except (Unreachable, EngineFailed):
        return False


def test_nothing_is_let_through_to_what_was_never_proven(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    """Its promoter was killed in the middle of the probe, and a question of that probe is still computed."""
    promote(make(1))
    unproven, third = make(2, seconds=60), _with(make(3), drain_seconds=0.5)
    killed = multiprocessing.get_context("fork").Process(target=promote, args=(unproven,))
    killed.start()
    wait_until(lambda: _busy(machine, unproven), 20, lambda: AssertionError("no probe"), 0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    promote(third)
    assert _serves(machine, registry, third)


@contextmanager
def _asking(machine: Settings, version: Served) -> Iterator[None]:
    """A request of which the engine makes no end: 400 words, twenty a second."""

    def ask() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{machine.engine_url}/v1/chat/completions", json=LONG, timeout=60)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: _busy(machine, version), 10, lambda: AssertionError("not asked"), 0.05)
    yield
    asking.join()


def _wordy(make: Maker, version: int) -> Served:
    answers = dict.fromkeys(QUESTIONS, f"answer of v{version}") | {"say much": "word " * 400}
    return make(version, seconds=0.05, answers=answers)


def test_the_way_back_does_not_wait_for_what_never_ends(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    first, second = _with(make(1), drain_seconds=0.3), _wordy(make, 2)
    promote(first)
    promote(second)
    with _asking(machine, second):
        promote(first)
    assert _serves(machine, registry, first)
    cut = "0 at the front, 1 in the engine; they are cut: v1 is the way back"
    assert any(cut in t.detail for t in DeployLog(machine.serving).read())


def test_what_never_ends_is_cut_where_the_config_says_so(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    first, second = _wordy(make, 1), _with(make(2), drain_seconds=0.2)
    promote(first)
    with _asking(machine, first):
        with pytest.raises(PromotionFailed, match=r"1 in the engine(.|\n)*serving.at_deadline `cut`"):
            promote(second)
        assert _serves(machine, registry, first)
        Promotion(machine, registry, second, DOUBLE, at_deadline="cut").run()
    assert _serves(machine, registry, second)


def test_a_body_that_is_never_sent_whole_keeps_no_version_away(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    start_front: StartFront,
) -> None:
    start_front(20)
    second = _with(make(2), drain_seconds=0.5)
    promote(make(1))
    key = credential(machine.state, "front_key")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 99\r\n\r\n{{"
    )
    with socket.create_connection(("127.0.0.1", machine.front_port)) as half:
        half.sendall(head.encode())
        wait_until(lambda: front.in_flight(machine) == 1, 30, lambda: AssertionError("not under way"), 0.05)
        promote(second)
    assert _serves(machine, registry, second)


def test_the_version_before_comes_back_where_the_confirmed_one_starts_no_more(
    machine: Settings, registry: RecordingRegistry, make: Maker, tmp_path: Path
) -> None:
    fragile = tmp_path / "fragile.py"
    fragile.write_text(FRAGILE.format(double=DOUBLE[1]))
    first, second, third = make(1), make(2), make(3, "dies")
    for version in (first, second):
        Promotion(machine, registry, version, (sys.executable, str(fragile))).run()
    (tmp_path / "broken").touch()
    for leader in running(machine):
        os.killpg(leader, signal.SIGKILL)
    with pytest.raises(PromotionFailed, match="v1 serves again"):
        Promotion(machine, registry, second, (sys.executable, str(fragile))).run()
    assert _serves(machine, registry, first)
    assert read_confirmed(machine).now == first
    with pytest.raises(PromotionFailed, match="v1 serves again"):  # and not the one that starts no more
        Promotion(machine, registry, third, (sys.executable, str(fragile))).run()


def test_a_version_with_other_settings_is_another_engine(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    first = make(1)
    other = first.model_copy(update={"images": first.images.model_copy(update={"max_pixels": 262_144})})
    for version in (first, other):
        promote(version)
        [pid] = running(machine)
        started = Path(f"/proc/{pid}/cmdline").read_text()
        assert f'"longest_edge": {version.images.max_pixels}' in started
        assert _serves(machine, registry, version)


def test_a_version_is_served_as_it_was_measured_whatever_the_config_says_now(smoke: Config, make: Maker) -> None:
    made = make(1)
    measured = made.images.model_copy(update={"max_pixels": 262_144})
    version = ModelVersion(
        name="digits",
        version=1,
        uri=made.model.as_uri(),
        digest=write_manifest(made.model),
        serving=made.serving.model_dump_json(),
        images=measured.model_dump_json(),
        hardware=made.hardware.model_dump_json(),
        golden=str(made.golden),
        golden_digest="d" * 64,
        tracking_run="r",
    )
    now = served(smoke, version)
    assert (now.images, now.hardware, now.golden_digest) == (measured, made.hardware, "d" * 64)
    assert served(smoke, version.model_copy(update={"images": None})).images == smoke.images


def test_a_rerun_under_traffic_spares_an_engine_whose_batch_moved_an_answer(
    machine: Settings, registry: RecordingRegistry, make: Maker, promote: Callable[[Served], object]
) -> None:
    first, second = make(1), make(2)
    for version in (first, second):
        promote(version)
    before, past = running(machine), len(_states(machine))
    second.golden.write_text(second.golden.read_text().replace("answer of v2", "moved", 2))
    promote(second)
    assert running(machine) == before
    assert "hold" not in _states(machine)[past:]
    second.golden.write_text(second.golden.read_text().replace("answer of v2", "moved"))
    with pytest.raises(PromotionFailed, match="v1 serves again"):  # nor does it answer alone, nor a new one
        promote(second)
    assert _serves(machine, registry, first)


def test_a_probe_ends_with_the_first_question_that_is_left_unanswered(
    machine: Settings, make: Maker, promote: Callable[[Served], object]
) -> None:
    version = make(1, seconds=1.5)
    promote(version)
    began = time.monotonic()
    probed = probe(machine.engine_url, version.name, version.golden, timeout_seconds=1)
    assert time.monotonic() - began < 5  # six would take six seconds
    assert (probed.silent, probed.asked, probed.matched) == (True, 6, 0)


def test_a_probe_that_finds_no_place_says_nothing_of_answers(
    machine: Settings, make: Maker, promote: Callable[[Served], object]
) -> None:
    version = make(1, seconds=1.0)
    narrow = version.serving.model_copy(update={"max_num_seqs": 1, "max_waiting": 0})
    promote(version.model_copy(update={"serving": narrow}))
    body = {"model": version.name, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    with ThreadPoolExecutor() as pool:
        client = pool.submit(httpx.post, f"{machine.engine_url}/v1/chat/completions", json=body, timeout=60)
        wait_until(lambda: metrics(machine.engine_url).running == 1, 10, lambda: AssertionError("not under way"), 0.01)
        with pytest.raises(EngineBusy, match="is busy"):
            probe(machine.engine_url, version.name, version.golden, timeout_seconds=0.2)
        assert client.result().status_code == 200


def test_a_full_queue_hides_no_ruined_answer(
    machine: Settings, make: Maker, promote: Callable[[Served], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = make(1)
    promote(version)
    replies = [Reply("!!!!!!!!", "stop", 0.1, 1, 1, 8), *[EngineBusy("its queue is full")] * (len(QUESTIONS) - 1)]

    async def some(*_: object) -> list[Reply | EngineBusy]:
        return replies

    monkeypatch.setattr("serving.probe._replies", some)
    with pytest.raises(EngineFailed, match="0 of 6 golden answers came again"):
        probe(machine.engine_url, version.name, version.golden).require(0.5)


def test_an_engine_that_hangs_is_replaced_and_not_asked_for_its_leave(
    machine: Settings,
    registry: RecordingRegistry,
    make: Maker,
    promote: Callable[[Served], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = replace(make, device="cuda", serving=make.serving.model_copy(update={"strategy": "reload"}))
    first, second = make(1), make(2)
    promote(first)
    httpx.post(f"{machine.engine_url}/pause", timeout=5, json={})
    monkeypatch.setattr(choose, "probe", lambda url, name, golden: probe(url, name, golden, timeout_seconds=0.3))
    Promotion(machine, registry, second, DOUBLE, at_deadline="cut").run()
    assert _serves(machine, registry, second)
    assert any("what runs does not answer" in t.detail for t in DeployLog(machine.serving).read())
