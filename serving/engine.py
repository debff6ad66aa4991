"""A vLLM server: what it is started with, and the process group that it is from start to stop.

An engine in service outlives whoever started it, and is found again by the log that its processes write to: a renamed
process (vLLM renames its own) loses its environment, an orphan its parent, but neither loses its standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipelines.config import Hardware, Images, Serving
from pipelines.errors import EngineFailed
from pipelines.system.processes import free_port, output, require_free_port, start, tail, wait_until
from pipelines.system.redact import redacted
from serving.adapter import LoraAdapter
from serving.client import healthy, served_names

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
"""The program; `vllm serve` by its module, so that it is the one of this environment."""

OUT_OF_MEMORY = (
    ": the card has too little memory free; see what else holds some (nvidia-smi), or lower "
    "serving.gpu_memory_utilization, max_num_batched_tokens or images.max_pixels"
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything that decides how an engine runs, its port apart."""

    model: Path
    names: tuple[str, ...]
    """The names that requests may use; the first is the one that answers carry. An adapter has one."""

    serving: Serving
    images: Images
    hardware: Hardware
    program: tuple[str, ...] = VLLM
    extra: tuple[str, ...] = ()
    """Flags after ours; of a flag that is given twice, the last one counts."""

    adapter: LoraAdapter | None = None
    """What is served on the model; the model itself then answers to `NAME-base`."""

    reloadable: bool = False
    """Whether it may be told to read other weights, or to take another adapter. The endpoints for that do whatever they
    are told: the front passes on none of them, and whoever may use this machine's loopback can."""

    def command(self, port: int) -> list[str]:
        """The argument list of the server."""
        names, beside = self.names, []
        if self.adapter is not None:
            [name] = self.names
            names, beside = (f"{name}-base",), self.adapter.flags(name)
        place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", *names]
        ours = options(self.serving, self.images, self.hardware)
        return [*self.program, str(self.model), *place, *ours, *beside, *self.extra]

    def start(self, port: int, log: Path, *, outlives_us: bool = True) -> subprocess.Popen[bytes]:
        """Start the server, without any secret of ours in its environment."""
        env = environment(self.serving, self.hardware)
        if self.reloadable:
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if self.reloadable and self.adapter is not None:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        return start(self.command(port), log, env, outlives_us=outlives_us, secrets=False)


def options(serving: Serving, images: Images, hardware: Hardware) -> list[str]:
    """The flags that decide what is computed and how: two measurements compare only if these are equal."""
    pixels = {"size": {"shortest_edge": images.min_pixels, "longest_edge": images.max_pixels}}  # pixel counts
    flags: dict[str, object] = {
        "--load-format": "safetensors",
        "--dtype": "bfloat16",
        "--max-model-len": serving.max_model_len,
        "--max-num-seqs": serving.max_num_seqs,
        # Of all that are not answered yet. A limit of tokens would be a promise about the first one, which nobody made.
        "--max-num-queued-reqs": serving.max_num_seqs + serving.max_waiting,
        "--max-num-batched-tokens": serving.max_num_batched_tokens,
        "--limit-mm-per-prompt": json.dumps({"image": serving.images_per_request, "video": 0}),
        "--mm-processor-kwargs": json.dumps(pixels),
        # The API's process and the engine's each think that they know what the other has kept of an image. When many
        # requests come at once, as after a hold, they differ, and vLLM 0.32 answers 500 ("P0/P1 cache drift").
        "--mm-processor-cache-gb": 0,
        # Only data URLs pass: an empty list would allow every address, and a name that could be one would be looked up.
        "--allowed-media-domains": "no/host",
        "--shutdown-timeout": round(serving.drain_seconds),
        **_device_flags(serving, hardware),
    }
    switches = ["--enforce-eager"] if hardware.device == "cpu" else []  # torch.compile takes minutes on a CPU
    return [*switches, "--disable-uvicorn-access-log", *(str(part) for flag in flags.items() for part in flag)]


def _device_flags(serving: Serving, hardware: Hardware) -> dict[str, object]:
    if hardware.device == "cuda":
        # vLLM takes a share of the whole card, and a profile may allow less than that.
        return {"--gpu-memory-utilization": round(serving.gpu_memory_utilization * hardware.share, 4)}
    return {
        "--kv-cache-memory-bytes": round(serving.kv_cache_gib * 2**30),
        "--distributed-executor-backend": "uni",  # with the switch below: one process less to import vLLM, 11 s of 30
    }


def environment(serving: Serving, hardware: Hardware) -> dict[str, str]:
    """What the server needs in its environment: offline, silent, no redirects to follow, no image to choke on."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_MAX_IMAGE_PIXELS": str(serving.image_megapixels * 1_000_000),
    }
    if hardware.device == "cuda":
        return {**common, "VLLM_ENABLE_STARTUP_PLAN": "1"}  # a later start knows what the first one measured
    return {
        **common,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The products of the embedded default are too small to share out, and a second thread that waits for its part
        # spins: three engines asked at once took 258 s with two threads each, and 18 s with one.
        "OMP_NUM_THREADS": "1",
        # The CPU platform swaps "uni" for a third process unless this is off; the engine core is a process anyway.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


@dataclass
class Engine:
    """A started server."""

    pid: int
    """Leader, and so number, of its process group."""

    url: str
    log: Path
    names: tuple[str, ...]
    began: float = field(default_factory=time.monotonic)

    def wait_ready(self, seconds: float) -> float:
        """Wait until it answers under all of its names; return the seconds since it was started.

        Raises:
            EngineFailed: It died, or the deadline passed; with the end of its log.
        """
        wait_until(self._ready, seconds, lambda: self._failed(f"did not answer within {seconds:.0f} s"))
        return time.monotonic() - self.began

    def stop(self, grace_seconds: float) -> None:
        """End all of its processes: SIGTERM to the leader, after the grace SIGKILL to all.

        Zombies count as ended: in a container nobody may reap the children of a promoter that is gone. Whoever got a
        number of theirs meanwhile is let be.
        """
        deadline = time.monotonic() + grace_seconds
        ours = self._processes()
        for process in ours:
            if process.pid == self.pid:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()  # psutil compares the start time: never a stranger
        while alive(self.pid) and self._processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        _kill(ours)  # also what looks dead: other threads may outlive the first one, and keep the port
        wait_until(self._killed, 20, lambda: self._failed("is still there after SIGKILL"), 0.05)

    def _killed(self) -> bool:
        left = self._processes()
        _kill(left)
        return not left

    def _processes(self) -> list[psutil.Process]:
        """Those of its group, if one of them writes to its log: else the number belongs to somebody else now."""
        members = group(self.pid)
        return members if any(output(process.pid) == self.log for process in members) else []

    def _ready(self) -> bool:
        if not alive(self.pid):
            raise self._failed("died")
        return healthy(self.url) and set(self.names) <= set(served_names(self.url))

    def _failed(self, what: str) -> EngineFailed:
        said = redacted(tail(self.log))
        way_out = OUT_OF_MEMORY if "out of memory" in said else ""
        return EngineFailed(f"the engine {what}{way_out}; the end of {self.log}:\n{said}")


@contextmanager
def engine(launch: Launch, log: Path) -> Iterator[Engine]:
    """A server on a free port, stopped on leaving the block with no process left. It is started, not yet ready."""
    port = free_port()
    process = launch.start(port, log, outlives_us=False)
    started = Engine(process.pid, f"http://127.0.0.1:{port}", log, launch.names)
    try:
        yield started
    finally:
        started.stop(grace_seconds=0)  # whatever it still computes is of no use, and its own way out takes 3 s
        process.wait()


def start_in_service(launch: Launch, port: int, log: Path) -> Engine:
    """Start a server that outlives this process.

    Raises:
        MachineUnfit: The port is taken.
    """
    require_free_port(port, "the engine")
    process = launch.start(port, log)
    return Engine(process.pid, f"http://127.0.0.1:{port}", log, launch.names)


def find(logs: Path) -> dict[int, Path]:
    """The process groups that write to a log in the folder `logs`, and which log: living and orphaned engines."""
    found = {}
    for pid in psutil.pids():
        log = output(pid)
        if log is not None and log.parent == logs and log.suffix == ".log":
            with suppress(ProcessLookupError):
                found[os.getpgid(pid)] = log
    return found


def group(leader: int) -> list[psutil.Process]:
    """The living processes of a process group."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
