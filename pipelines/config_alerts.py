"""The section `alerts` of the config: who is told, how soon, how often. Secrets are named here and kept elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.section import Section
from pipelines.system.processes import SECRET

Severity = Literal["info", "warning", "critical"]
"""`info`: to be read some day. `warning`: to be looked at today. `critical`: requests are lost, or soon will be."""

Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
"""Name of an environment variable. Its value is a secret, and never in a config, a log or a message."""


class Sink(Section):
    """Somebody who is told."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """For `vlmops alert test NAME`, logs and state."""

    least: Severity = "info"
    """Alerts below this are not sent here."""

    deadline_seconds: float = Field(10.0, gt=0, le=60)
    """After this it counts as failed; its messages are sent again two minutes later, and no other sink waits for it."""

    per_hour: int = Field(30, ge=1)
    """Messages that it takes; what comes beyond waits, and goes out together in the next one."""

    @field_validator("url_from", "secret_from", "token_from", "password_from", check_fields=False)
    @classmethod
    def _named_as_a_secret(cls, value: str | None) -> str | None:
        # What is named so is kept from engines and from whatever else is started without secrets.
        if value is not None and not SECRET.search(value):
            raise ValueError(f"{value} is not named as a secret; let it hold WEBHOOK, TOKEN, KEY, SECRET or PASSWORD")
        return value


class LogSink(Sink):
    """The log of whoever checks."""

    kind: Literal["log"] = "log"
    name: str = Field("log", pattern=r"^[a-z][a-z0-9_-]*$")


class SmtpSink(Sink):
    """Mail."""

    kind: Literal["smtp"]
    host: str
    port: int = Field(587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    """`tls`: from the first byte, mostly on port 465. `none`: for a relay on this machine."""

    user: str | None = None
    """None: the server wants no login."""

    password_from: Variable | None = None
    """Variable with the password of `user`."""

    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    recipients: tuple[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _password_is_safe(self) -> Self:
        if (self.user is None) != (self.password_from is None):
            raise ValueError("user and password_from belong together; name both or neither")
        if self.user is not None and self.security == "none":
            raise ValueError("a password does not travel in the clear; set security to starttls or tls")
        return self


class SlackSink(Sink):
    """An incoming webhook of Slack."""

    kind: Literal["slack"]
    url_from: Variable
    """Variable with the webhook's whole address."""


class DingTalkSink(Sink):
    """A custom robot of DingTalk."""

    kind: Literal["dingtalk"]
    url_from: Variable
    """Variable with the webhook's whole address, access_token included."""

    secret_from: Variable | None = None
    """Variable with the secret that messages are signed with. None: the robot filters by keyword (`vlmops`) or
    address."""


class FeishuSink(Sink):
    """A custom bot of Feishu or Lark."""

    kind: Literal["feishu"]
    url_from: Variable
    """Variable with the webhook's whole address."""

    secret_from: Variable | None = None
    """Variable with the secret that messages are signed with. None: the bot filters by keyword (`vlmops`) or
    address."""


class WeComSink(Sink):
    """A group robot of WeCom."""

    kind: Literal["wecom"]
    url_from: Variable
    """Variable with the webhook's whole address, key included."""


class WebhookSink(Sink):
    """Anything that takes a POST of JSON."""

    kind: Literal["webhook"]
    url_from: Variable
    """Variable with the address."""

    token_from: Variable | None = None
    """Variable with what is sent as `Authorization: Bearer`."""

    secret_from: Variable | None = None
    """Variable with the secret of the header `X-Vlmops-Signature`: `sha256=` and the hex HMAC-SHA256 of the body."""


class HeartbeatSink(Sink):
    """A service elsewhere that is sent an empty POST after every check, and tells you when none comes any more: that
    this machine or its monitor is dead nobody here can tell. No alert goes there, so that `least` and `per_hour` say
    nothing.
    """

    kind: Literal["heartbeat"]
    url_from: Variable
    """Variable with the address, such as one of healthchecks.io."""


AnySink = Annotated[
    LogSink | SmtpSink | SlackSink | DingTalkSink | FeishuSink | WeComSink | WebhookSink | HeartbeatSink,
    Field(discriminator="kind"),
]


class Alerts(Section):
    """Alerts of the embedded stack; beside Prometheus, Alertmanager sends them."""

    fire_after: int = Field(2, ge=1)
    """Checks in a row that find something wrong before anybody is told."""

    resolve_after: int = Field(3, ge=1)
    """Checks in a row that find it well before it counts as over; that is told too."""

    repeat_hours: float | None = Field(24.0, gt=0)
    """What is still wrong is told again after so long. None: once."""

    sinks: tuple[AnySink, ...] = (LogSink(),)
    """Who is told."""

    @field_validator("sinks")
    @classmethod
    def _names_differ(cls, value: tuple[AnySink, ...]) -> tuple[AnySink, ...]:
        if twice := [name for name, count in Counter(sink.name for sink in value).items() if count > 1]:
            raise ValueError(f"sinks share a name: {', '.join(twice)}")
        return value
