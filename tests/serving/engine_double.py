"""Stands in for vLLM: the same arguments, endpoints, metric names and response fields, without a model.

What it does is in `double.json` of the folder of a model or an adapter, or in the metadata of its safetensors file. A
base with adapters answers by each name as what that name stands for. Of an adapter `answers`, `fault` and `reload`
count:

    answers     text by question; others are answered `unknown`
    fault       never (does not listen), dies (at start), oom (likewise), garbage, empty, abort, slow, and by the number
                of the request: drop (closes the connection), error (500), counted (an abort that only the metrics
                show), exits, and the names of BROKEN (200 and a body that is no answer)
    at          that number; 5 unless told
    seconds     an answer takes; 0.02 unless told
    start       seconds before it listens
    context     tokens that a request may have, its answer included; longer ones are refused. 0: any
    reload      when told to read these weights, or to load this adapter: stale (goes on as before), garbage, mixed
                (every other answer is still the old one), refuses (500), hangs, exits
    predictions by question, for requests that ask for the prompt's probabilities: `token_ids`, and for each token
                `logprobs`, a list of [token, log probability, rank], or null
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

FAULTY_REQUEST = 5
BROKEN = {
    "cut": b'{"choices": [{"message": {"content": "ans',
    "html": b"<html>One moment, please</html>",
    "list": b"[]",
    "choiceless": b'{"object": "chat.completion", "choices": []}',
    "mute": b'{"choices": [{"finish_reason": "stop"}]}',
    "unfinished": b'{"choices": [{"message": {"content": "answer of v2"}, "finish_reason": null}]}',
}


@dataclass
class State:
    """What the double is and counts."""

    names: list[str]
    """Of the model; those of adapters come behind them."""

    answers: dict[str, str]
    fault: str
    seconds: float
    predictions: dict[str, dict[str, Any]]
    context: int = 0
    places: int = 0
    """Requests that may be under way; others are refused. 0: any."""

    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: what its folder says."""

    unloaded: dict[str, Any] = field(default_factory=dict)
    """What the last adapter said that was unloaded: its weights stay in memory until others take their place."""

    cached: dict[str, str] = field(default_factory=dict)
    """By name and question, as a prefix cache: computed by whatever weights there were."""

    at: int = 5
    resumed: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.time)
    running: int = 0
    asked: int = 0
    aborted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """The endpoints."""

    protocol_version = "HTTP/1.1"
    state: ClassVar[State]

    def do_GET(self) -> None:
        """Health, models, metrics."""
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/v1/models":
            names = [*self.state.names, *self.state.adapters]
            self._json({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        elif self.path == "/metrics":
            self._send(200, metrics(self.state).encode(), "text/plain")
        else:
            self._json({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        """Chat, and what changes an engine, where that is switched on."""
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        if path != "/v1/chat/completions":
            self._change(path, sent)
            return
        body = json.loads(sent)
        self.state.resumed.wait()
        with self.state.lock:
            self.state.asked += 1
            self.state.running += 1
            number = self.state.asked
            full = self.state.places and self.state.running > self.state.places
        try:
            if full:
                message = "The engine is currently busy and cannot accept new requests."
                self._json({"error": {"message": message, "type": "ServiceUnavailableError", "code": 503}}, 503)
                return
            self._chat(body, number)
        finally:
            with self.state.lock:
                self.state.running -= 1

    def _change(self, path: str, sent: bytes) -> None:
        if path in {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}:
            if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "1":
                self._json({"detail": "Not Found"}, 404)
            elif path == "/v1/load_lora_adapter":
                self._load(json.loads(sent))
            else:
                self._unload(json.loads(sent)["lora_name"])
        elif os.environ.get("VLLM_SERVER_DEV_MODE") != "1":
            self._json({"detail": "Not Found"}, 404)
        elif path == "/pause":
            self.state.resumed.clear()
            self._json({"status": "paused"})
        elif path == "/resume":
            self.state.resumed.set()
            self._json({"status": "resumed"})
        elif path == "/reset_prefix_cache":
            self.state.cached.clear()
            self._json({"success": True})
        elif path in {"/reset_mm_cache", "/reset_encoder_cache"}:
            self._send(200, b"")
        elif path == "/collective_rpc":
            body = json.loads(sent)
            assert body["method"] == "reload_weights"
            self._reload(Path(body["kwargs"]["weights_path"]))
        else:
            self._json({"detail": "Not Found"}, 404)

    def _reload(self, model: Path) -> None:
        now = {"answers": self.state.answers, "fault": self.state.fault}
        became = self._become(read_spec(model), now)
        if became is not None:
            self.state.answers, self.state.fault = became["answers"], became.get("fault", "")
            self._json({"results": [None]})

    def _become(self, spec: dict[str, Any], now: dict[str, Any]) -> dict[str, Any] | None:
        """What something is after it was told to read `spec`; None where it refused, and said so."""
        fault = spec.get("reload", "")
        if fault == "hangs":
            time.sleep(3600)
        if fault == "exits":
            os._exit(1)
        if fault == "refuses":
            self._json({"error": {"message": "shapes differ"}}, 500)
            return None
        if fault == "mixed":
            old = now["answers"]
            return {**spec, "answers": {**spec["answers"], **{key: old[key] for key in list(old)[::2]}}}
        if fault == "stale":
            return now
        return {**spec, "fault": "garbage"} if fault else spec

    def _load(self, body: dict[str, Any]) -> None:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.state.names:
            self._error(f"The lora adapter '{name}' conflicts with a served base model.", 400)
        elif name in self.state.adapters:
            self._error(f"The lora adapter '{name}' has already been loaded.", 400)
        elif not path.is_dir():
            self._error(f"Loading lora {name} failed: No adapter found for {path}", 404)
        else:
            became = self._become(read_spec(path), self.state.unloaded)
            if became is not None:
                self.state.adapters[name] = became
                self.state.at = became.get("at", self.state.at)
                self._send(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _unload(self, name: str) -> None:
        if name not in self.state.adapters:
            self._error(f"The lora adapter '{name}' cannot be found.", 404)
            return
        self.state.unloaded = self.state.adapters.pop(name)
        self._send(200, f"Success: LoRA adapter '{name}' removed successfully.".encode())

    def _error(self, message: str, status: int) -> None:
        self._json({"error": {"message": message, "code": status}}, status)

    def _chat(self, body: dict[str, Any], number: int) -> None:
        if body["model"] not in {*self.state.names, *self.state.adapters}:
            self._json({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
            return
        if self.state.context and (tokens := prompt_tokens(body) + body["max_tokens"]) > self.state.context:
            message = f"This model's maximum context length is {self.state.context} tokens, you requested {tokens}."
            self._json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        time.sleep(self.state.seconds)
        fault = self.state.adapters.get(body["model"], {"fault": self.state.fault}).get("fault", "")
        if number == self.state.at and fault in BROKEN:
            self._send(200, BROKEN[fault], "application/json")
            return
        if number == self.state.at and fault in {"drop", "error", "counted", "exits"}:
            if fault == "exits":
                os._exit(1)
            if fault == "drop":
                self.close_connection = True
                return
            if fault == "error":
                self._json({"error": {"message": "internal"}}, 500)
                return
            self.state.aborted += 1
        self._answer(body, fault)

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        text = {"garbage": "!!!!", "empty": "", "abort": ""}.get(fault, self._text(body))
        reason = "abort" if fault == "abort" else "stop"
        if body.get("stream"):
            self._stream(text, reason)
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        read = self._read(body) if "prompt_logprobs" in body else {}
        usage = {"prompt_tokens": prompt_tokens(body), "completion_tokens": len(text.split())}
        named = body["model"] if body["model"] in self.state.adapters else self.state.names[0]
        reply = {"object": "chat.completion", "model": named, "choices": [choice], "usage": usage}
        self._json({**reply, **read})

    def _read(self, body: dict[str, Any]) -> dict[str, Any]:
        """What vLLM adds where `prompt_logprobs` and `return_token_ids` are asked for."""
        assert body["return_token_ids"]
        assert not body["add_generation_prompt"]
        known = self.state.predictions.get(question(body["messages"][0]))
        if known is None:
            return {"prompt_token_ids": None, "prompt_logprobs": None}
        told = [
            tokens and {str(token): {"logprob": p, "rank": rank, "decoded_token": "?"} for token, p, rank in tokens}
            for tokens in known["logprobs"]
        ]
        return {"prompt_token_ids": known["token_ids"], "prompt_logprobs": told}

    def _text(self, body: dict[str, Any]) -> str:
        asked = question(body["messages"][-1])
        answers = self.state.adapters.get(body["model"], {"answers": self.state.answers})["answers"]
        text = self.state.cached.setdefault(f"{body['model']}: {asked}", answers.get(asked, "unknown"))
        for stop in body.get("stop", ()):
            text = text.split(stop)[0]
        return text

    def _stream(self, text: str, reason: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in text.split():
            self._event(json.dumps({"choices": [{"delta": {"content": piece}, "finish_reason": None}]}))
            time.sleep(self.state.seconds)
        self._event(json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]}))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the base class's
        """Say nothing."""


def read_spec(model: Path) -> dict[str, Any]:
    """What a model folder says about the double."""
    if (model / "double.json").is_file():
        return json.loads((model / "double.json").read_text())
    [weights] = model.glob("*.safetensors")
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["double"])


def question(message: dict[str, Any]) -> str:
    """All text of a message."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def prompt_tokens(body: dict[str, Any]) -> int:
    """Words of all messages, and a hundred for each image."""
    parts = [part for message in body["messages"] for part in message["content"]]
    return sum(len(part["text"].split()) if part["type"] == "text" else 100 for part in parts)


def metrics(state: State) -> str:
    """The metrics that we read, in vLLM's names."""
    labels = f'engine="0",model_name="{state.names[0]}"'
    finished = {"stop": state.asked, "length": 0, "abort": state.aborted, "error": 0, "repetition": 0}
    lines = [
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {state.started}",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{{{labels}}} {state.running}",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{{{labels}}} 0",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        f"vllm:kv_cache_usage_perc{{{labels}}} {state.running / 100}",
        "# TYPE vllm:num_preemptions_total counter",
        f"vllm:num_preemptions_total{{{labels}}} 0",
        "# TYPE vllm:request_success_total counter",
        *(f'vllm:request_success_total{{{labels},finished_reason="{k}"}} {n}' for k, n in finished.items()),
    ]
    return "\n".join(lines) + "\n"


class Server(ThreadingHTTPServer):
    """Takes a burst of connections, as vLLM does."""

    request_queue_size = 256


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--max-num-queued-reqs", type=int, default=0)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-modules", type=json.loads)
    args, _ = parser.parse_known_args()
    spec, adapters = read_spec(args.model), {}
    if args.lora_modules:
        assert args.enable_lora
        adapters = {args.lora_modules["name"]: read_spec(Path(args.lora_modules["path"]))}
        [served] = adapters.values()
        spec |= {key: served[key] for key in ("fault", "start", "seconds", "at") if key in served}
    fault = spec.get("fault", "")
    if fault == "dies":
        sys.exit("RuntimeError: Engine core initialization failed")
    if fault == "oom":
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 47.38 GiB in total")
    time.sleep(3600 if fault == "never" else spec.get("start", 0))
    # As vLLM's engine core: a process of its own that nothing but the process group ties to its parent.
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    signal.signal(signal.SIGTERM, lambda *_: (core.kill(), os._exit(0)))
    seconds, predictions = spec.get("seconds", 0.02), spec.get("predictions", {})
    context = spec.get("context", 0)
    Handler.state = State(args.served_model_name, spec["answers"], fault, seconds, predictions, context)
    Handler.state.at = spec.get("at", FAULTY_REQUEST)
    Handler.state.resumed.set()
    Handler.state.adapters = adapters
    Handler.state.places = args.max_num_queued_reqs
    Server((args.host, args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
