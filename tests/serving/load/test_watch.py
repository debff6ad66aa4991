"""The engine's counters: what happened between two looks, and nothing taken for zero."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipelines.errors import EngineFailed, Unreachable
from serving.client import metrics as read
from serving.load.watch import Watch

Serve = Callable[[str], str]


def metrics(
    *, usage: float = 0.0, preempted: int = 0, aborted: int = 0, started: float = 1.5, running: tuple[int, int] = (0, 0)
) -> str:
    """As vLLM writes them."""
    return (
        f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n"
        f'# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine="0"}} {running[0]}\n'
        f'vllm:num_requests_running{{engine="1"}} {running[1]}\n'
        f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 0\n"
        f'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{engine="0"}} {usage}\n'
        f'vllm:kv_cache_usage_perc{{engine="1"}} {usage / 2}\n'
        f'# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total{{engine="0"}} {preempted}\n'
        f"# TYPE vllm:request_success_total counter\n"
        f'vllm:request_success_total{{finished_reason="stop"}} 7\n'
        f'vllm:request_success_total{{finished_reason="abort"}} {aborted}\n'
        f'vllm:request_success_total{{finished_reason="error"}} 1\n'
    )


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves what it was given last; returns the address."""
    said = {"text": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = said["text"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def say(text: str) -> str:
        said["text"] = text
        return f"http://127.0.0.1:{server.server_port}"

    yield say
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_watch_keeps_the_peak_and_counts_from_its_first_look(serve: Serve) -> None:
    watch = Watch(serve(metrics(usage=0.9, preempted=3, aborted=2)))
    for usage in (0.2, 0.7, 0.4):
        serve(metrics(usage=usage, preempted=5, aborted=2))
        watch.look()
    serve(metrics(usage=0.1, preempted=6, aborted=3))
    found = watch.end()
    assert (found.kv_usage_peak, found.preemptions, found.lost, found.restarted) == (0.7, 3, 1, False)


def test_another_process_at_the_same_address_is_noticed(serve: Serve) -> None:
    watch = Watch(serve(metrics(started=1.5)))
    serve(metrics(started=2.5))
    assert watch.end().restarted


@pytest.mark.parametrize(
    "missing", ["num_requests_waiting", "kv_cache_usage_perc", "num_preemptions", '="abort"', "process_start"]
)
def test_a_figure_that_is_missing_is_not_zero(missing: str, serve: Serve) -> None:
    lines = [line for line in metrics().splitlines() if missing not in line]
    with pytest.raises(EngineFailed, match="has no"):
        read(serve("\n".join(lines) + "\n"))


@pytest.mark.parametrize("text", ["<html>busy</html>", "", 'vllm:kv_cache_usage_perc{engine="0'])
def test_what_tells_no_metrics_is_no_engine(text: str, serve: Serve) -> None:
    with pytest.raises(EngineFailed, match="is this the vLLM that we test with"):
        read(serve(text))


def test_several_engines_behind_one_address_are_summed_up(serve: Serve) -> None:
    found = read(serve(metrics(usage=0.5, running=(2, 3))))
    assert (found.running, found.waiting, found.in_flight, found.kv_usage) == (5, 0, 5, 0.5)


def test_an_engine_that_is_gone_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        read("http://127.0.0.1:9")
