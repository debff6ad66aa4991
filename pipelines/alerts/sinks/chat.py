"""Chat webhooks: Slack, DingTalk, Feishu (Lark), WeCom.

Slack answers `ok`. The others answer 200 whatever happens, with a code in the body that is 0 where the message was
taken: a wrong signature, a filtered keyword or a rate limit are told by that code alone.
Texts are plain, and what would mention people is taken apart: a summary may hold anything.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass

from pipelines.alerts.message import Message, shortened
from pipelines.alerts.sinks.post import post
from pipelines.alerts.sinks.sink import SinkFailed

DINGTALK_BYTES, FEISHU_BYTES, SLACK_BYTES, WECOM_BYTES = 15_000, 15_000, 30_000, 2_048
"""Of a text: below what each takes; WeCom's is its documented limit."""


@dataclass(frozen=True)
class Slack:
    """An incoming webhook."""

    address: str

    def __call__(self, message: Message, seconds: float) -> None:
        text = shortened(_whole(message), SLACK_BYTES)
        for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # `<!channel>` would call everybody
            text = text.replace(character, entity)
        reply = post(self.address, _json({"text": text}), seconds)
        if reply.strip() != b"ok":
            raise SinkFailed(f"answered {reply[:200].decode(errors='replace')!r} instead of ok")


@dataclass(frozen=True)
class DingTalk:
    """A custom robot."""

    address: str
    secret: str | None

    def __call__(self, message: Message, seconds: float) -> None:
        body = {"msgtype": "text", "text": {"content": shortened(_whole(message), DINGTALK_BYTES)}}
        params = {} if self.secret is None else dingtalk_signature(self.secret, time.time_ns() // 1_000_000)
        require_code(post(self.address, _json(body), seconds, params=params), "errcode")


@dataclass(frozen=True)
class Feishu:
    """A custom bot, of Lark too."""

    address: str
    secret: str | None

    def __call__(self, message: Message, seconds: float) -> None:
        text = shortened(_whole(message).replace("<", "\uff1c"), FEISHU_BYTES)  # `<at user_id="all">` calls everybody
        body: dict[str, object] = {"msg_type": "text", "content": {"text": text}}
        if self.secret is not None:
            body |= feishu_signature(self.secret, int(time.time()))
        require_code(post(self.address, _json(body), seconds), "code")


@dataclass(frozen=True)
class WeCom:
    """A group robot."""

    address: str

    def __call__(self, message: Message, seconds: float) -> None:
        body = {"msgtype": "text", "text": {"content": shortened(_whole(message), WECOM_BYTES)}}
        require_code(post(self.address, _json(body), seconds), "errcode")


def dingtalk_signature(secret: str, milliseconds: int) -> dict[str, str]:
    r"""The query of a signed message: base64 of HMAC-SHA256 with the secret as key, over `<milliseconds>\n<secret>`.

    DingTalk's documentation, custom robots, security by signature; valid for an hour.
    """
    code = hmac.digest(secret.encode(), f"{milliseconds}\n{secret}".encode(), hashlib.sha256)
    return {"timestamp": str(milliseconds), "sign": base64.b64encode(code).decode()}


def feishu_signature(secret: str, seconds: int) -> dict[str, str]:
    r"""The fields of a signed message: base64 of HMAC-SHA256 with `<seconds>\n<secret>` as key, over nothing.

    Feishu's documentation, custom bots, signature verification; valid for an hour.
    """
    code = hmac.digest(f"{seconds}\n{secret}".encode(), b"", hashlib.sha256)
    return {"timestamp": str(seconds), "sign": base64.b64encode(code).decode()}


def require_code(reply: bytes, field: str) -> None:
    """Refuse an answer that does not say that the message was taken.

    Args:
        reply: The answer's body.
        field: Whose value is 0 then.

    Raises:
        SinkFailed: Another code, or none.
    """
    shown = reply[:200].decode(errors="replace")
    try:
        answer = json.loads(reply)
    except ValueError:
        raise SinkFailed(f"answered 200 without JSON: {shown!r}") from None
    if not isinstance(answer, dict) or answer.get(field) != 0:
        raise SinkFailed(f"answered 200 and did not take it: {shown}")


def _whole(message: Message) -> str:
    return f"{message.title}\n{message.text}"


def _json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()
