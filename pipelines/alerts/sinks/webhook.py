"""Any receiver of JSON: a POST with title, text and notices, signed where a secret is named; or of a sign of life."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass

from pipelines.alerts.message import Message
from pipelines.alerts.sinks.post import post

SIGNATURE = "X-Vlmops-Signature"


@dataclass(frozen=True)
class Webhook:
    """Taken when the answer is 2xx."""

    address: str
    token: str | None
    secret: str | None

    def __call__(self, message: Message, seconds: float) -> None:
        notices = [notice.model_dump(mode="json") for notice in message.notices]
        body = json.dumps({"title": message.title, "text": message.text, "notices": notices}).encode()
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        if self.secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()}"
        post(self.address, body, seconds, headers=headers)


@dataclass(frozen=True)
class Heartbeat:
    """Taken when the answer is 2xx."""

    address: str

    def __call__(self, message: Message, seconds: float) -> None:  # noqa: ARG002  it says that we live, and no more
        post(self.address, b"", seconds)
