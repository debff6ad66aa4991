"""Each sink against a server that checks what its real one checks: signature, body, and what counts as taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines.alerts.alert import Alert, Notice
from pipelines.alerts.delivery import Delivery, Job, deliver
from pipelines.alerts.message import compose, shortened
from pipelines.config_alerts import AnySink
from tests.pipelines.alerts.receivers import Receiver, dripping, mail_server, receiver

ALERT = Alert(
    "EngineDown",
    "critical",
    'no answer; api_key="sk-livelivelivelivelive"',
    {"model": "digits"},
    "docs/x.md#enginedown",
)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
MESSAGE = compose([Notice(kind="firing", alert=ALERT, time=NOW, since=NOW)])
SECRET = "SEC-0123456789abcdef"


def sink(**fields: object) -> AnySink:
    return TypeAdapter[AnySink](AnySink).validate_python({"name": "it", "deadline_seconds": 5, **fields})


def send(config: AnySink) -> Delivery:
    return deliver({config.name: Job(config, MESSAGE)})[config.name]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A server whose address, with a token in it, and whose secret are in the environment."""
    with receiver(lambda _: (200, b'{"errcode": 0, "code": 0}')) as server:
        monkeypatch.setenv("CHAT_WEBHOOK", f"{server.url}/send?access_token=hush-hush-token")
        monkeypatch.setenv("CHAT_SECRET", SECRET)
        yield server


def test_dingtalk_takes_a_message_signed_as_its_documentation_says(chat: Receiver) -> None:
    delivery = send(sink(kind="dingtalk", url_from="CHAT_WEBHOOK", secret_from="CHAT_SECRET"))
    assert delivery.error is None
    [request] = chat.received
    query = {name: value for name, [value] in parse_qs(urlsplit(request.path).query).items()}
    code = hmac.new(SECRET.encode(), f"{query['timestamp']}\n{SECRET}".encode(), hashlib.sha256).digest()
    assert base64.b64decode(query["sign"]) == code
    assert abs(int(query["timestamp"]) / 1000 - time.time()) < 60
    assert query["access_token"] == "hush-hush-token"
    body = json.loads(request.body)
    assert body["msgtype"] == "text"
    assert "FIRING critical EngineDown (model=digits)" in body["text"]["content"]


def test_feishu_takes_a_message_signed_as_its_documentation_says(chat: Receiver) -> None:
    assert send(sink(kind="feishu", url_from="CHAT_WEBHOOK", secret_from="CHAT_SECRET")).error is None
    [request] = chat.received
    body = json.loads(request.body)
    code = hmac.new(f"{body['timestamp']}\n{SECRET}".encode(), b"", hashlib.sha256).digest()
    assert base64.b64decode(body["sign"]) == code
    assert abs(int(body["timestamp"]) - time.time()) < 60
    assert body["msg_type"] == "text"
    assert "EngineDown" in body["content"]["text"]


def test_without_a_secret_nothing_is_signed(chat: Receiver) -> None:
    assert send(sink(kind="dingtalk", url_from="CHAT_WEBHOOK")).error is None
    assert send(sink(kind="feishu", url_from="CHAT_WEBHOOK")).error is None
    assert "sign" not in chat.received[0].path
    assert "sign" not in json.loads(chat.received[1].body)


def test_wecom_takes_a_text(chat: Receiver) -> None:
    assert send(sink(kind="wecom", url_from="CHAT_WEBHOOK")).error is None
    body = json.loads(chat.received[0].body)
    assert body["msgtype"] == "text"
    assert "EngineDown" in body["text"]["content"]


def test_a_webhook_is_signed_and_holds_the_notices(chat: Receiver) -> None:
    config = sink(kind="webhook", url_from="CHAT_WEBHOOK", secret_from="CHAT_SECRET", token_from="CHAT_SECRET")
    assert send(config).error is None
    [request] = chat.received
    expected = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Vlmops-Signature"] == f"sha256={expected}"
    assert request.headers["Authorization"] == f"Bearer {SECRET}"
    [notice] = json.loads(request.body)["notices"]
    assert (notice["kind"], notice["alert"]["name"], notice["alert"]["labels"]) == (
        "firing", "EngineDown", {"model": "digits"},
    )  # fmt: skip


def test_slack_takes_a_text_in_which_nobody_is_called(chat: Receiver) -> None:
    chat.answer = lambda _: (200, b"ok")
    message = compose([Notice(kind="firing", alert=Alert("A", "info", "<!channel> & co"), time=NOW, since=NOW)])
    config = sink(kind="slack", url_from="CHAT_WEBHOOK")
    assert deliver({"it": Job(config, message)})["it"].error is None
    assert "&lt;!channel&gt; &amp; co" in json.loads(chat.received[0].body)["text"]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("dingtalk", b'{"errcode": 310000, "errmsg": "sign not match"}'),
        ("feishu", b'{"code": 19021, "msg": "sign match fail"}'),
        ("wecom", b'{"errcode": 93000, "errmsg": "invalid webhook url"}'),
        ("wecom", b"<html>a proxy</html>"),
        ("dingtalk", b"[]"),
        ("slack", b"no_service"),
    ],
)
def test_an_answer_of_200_that_refuses_is_a_failure(chat: Receiver, kind: str, answer: bytes) -> None:
    chat.answer = lambda _: (200, answer)
    error = send(sink(kind=kind, url_from="CHAT_WEBHOOK")).error
    assert error is not None
    assert answer[:20].decode() in error


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_another_status_is_a_failure_and_no_redirect_is_followed(chat: Receiver, status: int) -> None:
    chat.answer = lambda _: (status, b'{"errcode": 0}')
    error = send(sink(kind="dingtalk", url_from="CHAT_WEBHOOK")).error
    assert error is not None
    assert str(status) in error
    assert len(chat.received) == 1


def test_no_secret_is_sent_logged_or_shown(chat: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    chat.answer = lambda request: (500, f"you sent {request.path} signed by {SECRET}".encode())
    delivery = send(sink(kind="dingtalk", url_from="CHAT_WEBHOOK", secret_from="CHAT_SECRET"))
    told = chat.received[0].body.decode() + caplog.text + delivery.model_dump_json()
    for secret in ("sk-livelivelivelivelive", "hush-hush-token", SECRET):
        assert secret not in told


def test_a_missing_variable_is_named() -> None:
    error = send(sink(kind="slack", url_from="NOT_THERE_WEBHOOK")).error
    assert error is not None
    assert "NOT_THERE_WEBHOOK is not set" in error


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "not an address", "http://[::1", "ftp://127.0.0.1/x"])
def test_an_address_where_nothing_is_is_a_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("CHAT_WEBHOOK", address)
    error = send(sink(kind="webhook", url_from="CHAT_WEBHOOK")).error
    assert error is not None
    assert "error of ours" not in error


def test_dead_and_slow_sinks_do_not_hold_up_the_others(chat: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: object) -> tuple[int, bytes]:
        time.sleep(10)
        return 200, b"{}"

    with receiver(slow) as hanging, dripping() as drips:
        monkeypatch.setenv("DEAD_WEBHOOK", "http://127.0.0.1:9/")
        monkeypatch.setenv("HANGING_WEBHOOK", hanging.url)
        monkeypatch.setenv("DRIPPING_WEBHOOK", drips)
        sinks = [
            sink(kind="webhook", name="dead", url_from="DEAD_WEBHOOK"),
            sink(kind="webhook", name="hanging", url_from="HANGING_WEBHOOK", deadline_seconds=0.5),
            sink(kind="webhook", name="dripping", url_from="DRIPPING_WEBHOOK", deadline_seconds=0.5),
            sink(kind="webhook", name="well", url_from="CHAT_WEBHOOK"),
        ]
        began = time.monotonic()
        deliveries = deliver({config.name: Job(config, MESSAGE) for config in sinks})
        assert time.monotonic() - began < 8
    assert {name: delivery.error is None for name, delivery in deliveries.items()} == {
        "dead": False, "hanging": False, "dripping": False, "well": True,
    }  # fmt: skip
    assert deliveries["dripping"].error == "no answer within 0.5 s"


MAIL = {"kind": "smtp", "host": "127.0.0.1", "sender": "line@example.com", "recipients": ["a@example.com"]}


def test_mail_arrives_whole_over_a_plain_relay() -> None:
    with mail_server() as box:
        assert send(sink(**MAIL, port=box.port, security="none")).error is None
    [mail] = box.mails
    assert "Subject: vlmops on" in mail
    assert "To: a@example.com" in mail
    assert "FIRING critical EngineDown" in mail
    assert "Auto-Submitted: auto-generated" in mail
    assert "sk-live" not in mail


def test_mail_logs_in_over_tls_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("MAIL_PASSWORD", "pa55word")
    with mail_server(certificate) as box:
        config = sink(**MAIL, port=box.port, user="line", password_from="MAIL_PASSWORD")
        assert send(config).error is None
    assert box.logins == ["\0line\0pa55word"]
    assert box.encrypted == [True]


def test_mail_to_a_server_without_tls_fails_before_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", "pa55word")
    with mail_server() as box:
        error = send(sink(**MAIL, port=box.port, user="line", password_from="MAIL_PASSWORD")).error
    assert error is not None
    assert "STARTTLS" in error
    assert box.logins == []


def test_one_mailbox_that_is_gone_does_not_flood_the_others(caplog: pytest.LogCaptureFixture) -> None:
    with mail_server(refuse="b@example.com") as box:
        both = MAIL | {"recipients": ["a@example.com", "b@example.com"]}
        error = send(sink(**both, port=box.port, security="none")).error
    assert error is None  # else it would be sent again, to the one who has it
    assert "refused for b@example.com" in caplog.text


def test_a_password_that_no_server_takes_is_not_shown(monkeypatch: pytest.MonkeyPatch, certificate: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("MAIL_PASSWORD", "pässword")
    with mail_server(certificate) as box:
        error = send(sink(**MAIL, port=box.port, user="line", password_from="MAIL_PASSWORD")).error
    assert error is not None
    assert "must be ASCII" in error
    assert "xe4" not in error


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For 127.0.0.1, with its key, signed by itself."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "slack", "url_from": "https://hooks.slack.com/services/T/B/x"},
        {"kind": "slack", "url_from": "OUR_CHAT"},
        {**MAIL, "user": "line"},
        {**MAIL, "user": "line", "password_from": "MAIL_PASSWORD", "security": "none"},
        {**MAIL, "recipients": ["a@example.com\nBcc: b@example.com"]},
        {"kind": "carrier pigeon"},
    ],
)
def test_a_config_holds_names_of_secrets_and_no_secret(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        sink(**fields)


def test_a_text_is_cut_between_characters() -> None:
    assert shortened("abc", 10) == "abc"
    cut = shortened("\u8b66" * 10, 12)
    assert cut == "\u8b66\u8b66 ..."
    assert len(cut.encode()) <= 12


def test_a_long_message_lists_some_and_counts_the_rest() -> None:
    notices = [
        Notice(kind="firing", alert=Alert("A", "info", "x" * 2000, {"n": str(at)}), time=NOW, since=NOW)
        for at in range(30)
    ]
    message = compose(notices, dropped=5)
    assert "and 15 more" in message.text
    assert len(message.text) < 20 * 700
    assert len(message.notices) == 30
