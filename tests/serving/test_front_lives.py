"""The front as it is started: kept alive, over HTTPS, and under more load than the engine takes."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipelines.config import Serving
from pipelines.config_serving import Tls
from pipelines.errors import BAD_INPUT
from pipelines.settings import Settings
from pipelines.system.credentials import credential
from pipelines.system.processes import free_port, running, wait_until
from serving import front
from serving.client import healthy
from tests.serving.conftest import DOUBLE, Maker, wait_for_caddy
from tests.serving.traffic import Traffic


@pytest.fixture
def supervised(machine: Settings, make: Maker, tmp_path: Path) -> Iterator[psutil.Process]:
    """`python -m serving.front` and an engine that answers, released."""
    version = make(1)
    command = [sys.executable, "-m", "serving.front", "--set", "serving.hold_seconds=20"]
    with (
        running(version.launch(DOUBLE).command(machine.engine_port), tmp_path / "engine.log"),
        running(command, tmp_path / "front.log") as process,
    ):
        front.release(machine)
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        wait_for_caddy(machine)
        front.wait_noticed(machine)
        yield psutil.Process(process.pid)


def _replaced(front_process: psutil.Process, gone: psutil.Process) -> bool:
    return any(c != gone and "serving.keys_service" in " ".join(c.cmdline()) for c in front_process.children())


def _child(front_process: psutil.Process, word: str) -> psutil.Process:
    return next(child for child in front_process.children() if word in " ".join(child.cmdline()))


def test_a_keys_service_that_is_killed_costs_no_request(machine: Settings, supervised: psutil.Process) -> None:
    with Traffic(machine, "digits") as traffic:
        for _ in range(2):
            killed = _child(supervised, "serving.keys_service")
            killed.kill()
            wait_until(lambda gone=killed: _replaced(supervised, gone), 10, lambda: AssertionError("not back"), 0.05)
            time.sleep(1.5)
    assert set(traffic.outcomes) == {"answer of v1"}
    assert sum(traffic.outcomes.values()) > 40


def test_a_caddy_that_is_killed_is_back_at_once_and_still_holds(machine: Settings, supervised: psutil.Process) -> None:
    front.hold(machine)
    killed = _child(supervised, "Caddyfile")
    killed.kill()
    killed.wait(5)
    wait_for_caddy(machine)
    with pytest.raises(httpx.ReadTimeout):
        _models(machine, timeout=2)
    front.release(machine)
    assert _models(machine, timeout=10).status_code == 200


def test_all_ports_are_free_when_it_has_ended(machine: Settings, supervised: psutil.Process, serving: Serving) -> None:
    supervised.terminate()
    supervised.wait(20)
    front.prepare(machine, serving)


def _models(machine: Settings, **more: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential(machine.state, 'front_key')}"}
    return httpx.get(f"{machine.front_url}/v1/models", headers=headers, **more)


def test_a_front_that_cannot_start_says_why(machine: Settings, tmp_path: Path) -> None:
    missing = f"serving.tls={{name: box.lan, certificate: {tmp_path}/no.pem, key: {tmp_path}/no.key}}"
    ended = subprocess.run(
        [sys.executable, "-m", "serving.front", "--set", missing], capture_output=True, text=True, check=False
    )
    assert ended.returncode == BAD_INPUT
    assert "no.pem of serving.tls is not there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_https_by_caddy_s_own_authority(machine: Settings, start_front: Callable[..., None], make: Maker) -> None:
    tls = Tls(name="localhost", bind="127.0.0.1", port=free_port())
    start_front(3, tls=tls)
    _serves(machine, make, tls, machine.serving / "caddy/caddy/pki/authorities/local/root.crt")


def test_https_by_a_certificate_of_ones_own(
    machine: Settings, start_front: Callable[..., None], make: Maker, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "box.pem", tmp_path / "box.key"
    _sign(certificate, key)
    tls = Tls(name="localhost", bind="127.0.0.1", port=free_port(), certificate=certificate, key=key)
    start_front(3, tls=tls)
    _serves(machine, make, tls, certificate)


def _sign(certificate: Path, key: Path) -> None:
    secret, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    signed = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, *plain))


def _serves(machine: Settings, make: Maker, tls: Tls, trusted: Path) -> None:
    """It serves over HTTPS whom it knows, no other host's name is answered by silence, and plain HTTP stays."""
    front.release(machine)
    with running(make(1).launch(DOUBLE).command(machine.engine_port), machine.serving / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url) and trusted.is_file(), 10, lambda: AssertionError("no engine"))
        front.wait_noticed(machine)
        context = ssl.create_default_context(cafile=str(trusted))
        url = f"https://localhost:{tls.port}"
        key = {"Authorization": f"Bearer {credential(machine.state, 'front_key')}"}
        with httpx.Client(verify=context, headers=key) as client:
            answer = client.get(f"{url}/v1/models")
            assert answer.status_code == 200
            assert "Strict-Transport-Security" not in answer.headers
            assert client.get(f"{url}/metrics").status_code == 404
            assert client.get(f"{url}/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(f"{url}/nothing", headers={"Host": "other.lan"}).status_code in {403, 404, 421}
        assert _models(machine).status_code == 200


@pytest.mark.parametrize(
    "tls",
    [
        {"name": "box lan"},
        {"name": "box.lan {\n}"},
        {"name": "box.lan", "certificate": "/x.pem"},
        {"name": "box.lan", "bind": "everywhere"},
        {"name": "box.lan", "port": 0},
    ],
)
def test_what_cannot_be_https_is_refused(tls: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"name|certificate and key|bind|port"):
        Tls(**tls)


def test_ten_times_the_load_is_refused_in_time_and_costs_no_memory(
    machine: Settings, make: Maker, start_front: Callable[..., None], tmp_path: Path
) -> None:
    start_front(20)
    front.release(machine)
    version = make(1, seconds=0.2)
    version = version.model_copy(
        update={"serving": version.serving.model_copy(update={"max_num_seqs": 4, "max_waiting": 4})}
    )
    with running(version.launch(DOUBLE).command(machine.engine_port), tmp_path / "engine.log"):
        wait_until(lambda: healthy(machine.engine_url), 10, lambda: AssertionError("no engine"))
        front.wait_noticed(machine)
        asyncio.run(_overload(machine, at_once=8, times=2))  # everything that is kept for a connection is there now
        before = _memory(machine)
        outcomes = asyncio.run(_overload(machine, at_once=80, times=8))
        after = _memory(machine)
        assert asyncio.run(_overload(machine, at_once=1, times=3)) == Counter({(200, None): 3})
    assert set(outcomes) == {(200, None), (503, "5")}
    assert outcomes[200, None] >= 8 * 8
    assert outcomes[503, "5"] > outcomes[200, None]
    assert all(now < 1.6 * then for now, then in zip(after, before, strict=True)), (before, after)
    assert front.in_flight(machine) == 0


async def _overload(machine: Settings, at_once: int, times: int) -> Counter[tuple[int, str | None]]:
    """So many clients, each asking so often, one question after the other: status and Retry-After of all answers."""
    seen: Counter[tuple[int, str | None]] = Counter()
    message = {"role": "user", "content": [{"type": "text", "text": "question 1"}]}
    body = {"model": "digits", "user": "x" * 200_000, "messages": [message]}
    headers = {"Authorization": f"Bearer {credential(machine.state, 'front_key')}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(headers=headers, timeout=60, limits=limits, trust_env=False) as client:

        async def ask() -> None:
            for _ in range(times):
                answer = await client.post(f"{machine.front_url}/v1/chat/completions", json=body)
                seen[answer.status_code, answer.headers.get("Retry-After")] += 1

        await asyncio.gather(*(ask() for _ in range(at_once)))
    return seen


def _memory(machine: Settings) -> list[int]:
    """Resident bytes of Caddy and of the keys service."""
    ports = (machine.front_port, machine.keys_port)
    owners = [
        next(c.pid for c in psutil.net_connections() if c.laddr and c.laddr.port == port and c.status == "LISTEN")
        for port in ports
    ]
    return [psutil.Process(pid).memory_info().rss for pid in owners if pid]
