"""Asking what serves: what is sent, and what an answer that is none says."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import BadInput, EngineFailed, Unreachable, VlmopsError
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import running, wait_until
from serving import front
from serving.ask import ask
from serving.client import healthy
from serving.served import read_served, write_served
from tests.serving.conftest import DOUBLE, QUESTIONS, Maker

CAP = 4096
ANSWER = {"choices": [{"message": {"content": "a seven"}, "finish_reason": "stop"}]}
Reply = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class Front:
    """Answers what it is told to, in order, and keeps what it was asked."""

    replies: list[Reply] = field(default_factory=lambda: [(200, {}, ANSWER)])
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seconds: float = 0
    """For each answer."""


@pytest.fixture(autouse=True)
def _state(machine: Settings) -> None:
    machine.serving.mkdir(parents=True)


@pytest.fixture
def scripted(machine: Settings, make: Maker) -> Iterator[Front]:
    """A front whose answers the test says."""
    state = Front()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.headers["Authorization"], body))
            status, headers, reply = state.replies.pop(0)
            time.sleep(state.seconds)
            content = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked may have gone
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    version = make(1)
    images = version.images.model_copy(update={"max_pixels": CAP})
    write_served(machine, version.model_copy(update={"images": images}))
    server = ThreadingHTTPServer(("127.0.0.1", machine.front_port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").resize((300, 200)).save(path)
    return path


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "front", "code": 0}}


def never(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s")


def test_the_image_is_shrunk_to_what_the_engine_looks_at(machine: Settings, scripted: Front, photo: Path) -> None:
    assert ask(machine, photo, "Which digit?", never) == "a seven"
    [(key, body)] = scripted.asked
    assert key == f"Bearer {credential(machine.state, 'front_key')}"
    [shown, asked] = body["messages"][0]["content"]
    assert asked == {"type": "text", "text": "Which digit?"}
    kind, _, data = shown["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/jpeg"
    width, height = Image.open(io.BytesIO(base64.b64decode(data))).size
    assert 0.97 * CAP < width * height <= CAP


def test_a_question_may_be_held_as_long_as_serving_holds_it(
    machine: Settings, scripted: Front, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.ask.ANSWER_SECONDS", 0.2)
    scripted.seconds = 0.6
    scripted.replies *= 2
    version = read_served(machine)
    assert version is not None
    for hold, answered in ((2.0, True), (0.1, False)):
        held = version.serving.model_copy(update={"hold_seconds": hold})
        write_served(machine, version.model_copy(update={"serving": held}))
        with nullcontext() if answered else pytest.raises(Unreachable, match="ReadTimeout"):
            assert ask(machine, photo, "?", never) == "a seven"


def test_an_answer_without_a_text_is_none(machine: Settings, scripted: Front, photo: Path) -> None:
    scripted.replies = [(200, {}, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]})]
    with pytest.raises(EngineFailed, match="without a text"):
        ask(machine, photo, "?", never)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_front_is_asked_again_once_after_the_time_it_names(
    machine: Settings, scripted: Front, photo: Path, status: int
) -> None:
    busy = (status, {"Retry-After": "7"}, error("busy"))
    waited: list[float] = []
    scripted.replies = [busy, (200, {}, ANSWER)]
    assert ask(machine, photo, "?", waited.append) == "a seven"
    scripted.replies = [busy, busy]
    with pytest.raises(EngineFailed, match=f"answered {status} twice: busy; try again in 7 seconds"):
        ask(machine, photo, "?", waited.append)
    assert waited == [7, 7]
    assert len(scripted.asked) == 4


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, EngineFailed, "secrets/front_key; `vlmops keys list`"),
        (413, BadInput, "more than serving.body_megabytes"),
        (400, BadInput, "refuses the question: too long; shorten it"),
        (404, EngineFailed, "answered 404: too long"),
        (500, EngineFailed, "answered 500: too long"),
    ],
)
def test_a_refusal_says_what_to_do(
    machine: Settings, scripted: Front, photo: Path, status: int, kind: type[VlmopsError], says: str
) -> None:
    scripted.replies = [(status, {}, error("too long"))]
    with pytest.raises(kind, match=says) as refused:
        ask(machine, photo, "?", never)
    assert credential(machine.state, "front_key") not in str(refused.value)


def test_an_answer_that_was_cut_off_is_none(machine: Settings, scripted: Front, photo: Path) -> None:
    scripted.replies = [(200, {}, {"choices": [{"message": {"content": ""}, "finish_reason": "abort"}]})]
    with pytest.raises(EngineFailed, match="not finished: abort"):
        ask(machine, photo, "?", never)


def test_before_the_first_promotion_and_without_a_front(machine: Settings, make: Maker, photo: Path) -> None:
    with pytest.raises(BadInput, match="no version was promoted yet"):
        ask(machine, photo, "?")
    write_served(machine, make(1))
    with pytest.raises(Unreachable, match="the front"):
        ask(machine, photo, "?")


def test_through_the_real_front(
    machine: Settings, make: Maker, start_front: Callable[..., None], photo: Path, tmp_path: Path
) -> None:
    version = make(1)
    write_served(machine, version)
    start_front(5)
    with running(version.launch(DOUBLE).command(machine.engine_port), tmp_path / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        front.release(machine)
        assert ask(machine, photo, QUESTIONS[0], never) == "answer of v1"
