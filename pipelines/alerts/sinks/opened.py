"""A sink of the config with its secrets: what sends, and what must not be shown."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.alerts.sinks.chat import DingTalk, Feishu, Slack, WeCom
from pipelines.alerts.sinks.log import to_log
from pipelines.alerts.sinks.mail import Mail
from pipelines.alerts.sinks.sink import Send
from pipelines.alerts.sinks.webhook import Heartbeat, Webhook
from pipelines.config_alerts import (
    AnySink,
    DingTalkSink,
    FeishuSink,
    HeartbeatSink,
    LogSink,
    SlackSink,
    SmtpSink,
    WebhookSink,
)
from pipelines.settings import secret
from pipelines.system.redact import HIDDEN, redacted


@dataclass(frozen=True)
class Opened:
    """A sink that can be used."""

    send: Send
    secrets: tuple[str, ...]

    def shown(self, text: str) -> str:
        """A text, such as the words of a server, without this sink's secrets or any other."""
        for value in self.secrets:
            text = text.replace(value, HIDDEN)
        return redacted(text)


def open_sink(config: AnySink) -> Opened:
    """A sink with its secrets, from the environment.

    Raises:
        BadInput: A variable is not set; names it.
    """
    if isinstance(config, LogSink):
        return Opened(to_log, ())
    if isinstance(config, SmtpSink):
        password = _optional(config.password_from)
        return Opened(Mail(config, password), _known(password))
    address = secret(config.url_from)
    if isinstance(config, SlackSink | HeartbeatSink):
        bare = Slack if isinstance(config, SlackSink) else Heartbeat
        return Opened(bare(address), (address,))
    if isinstance(config, DingTalkSink | FeishuSink):
        key = _optional(config.secret_from)
        chat = DingTalk if isinstance(config, DingTalkSink) else Feishu
        return Opened(chat(address, key), _known(address, key))
    if isinstance(config, WebhookSink):
        token, key = _optional(config.token_from), _optional(config.secret_from)
        return Opened(Webhook(address, token, key), _known(address, token, key))
    return Opened(WeCom(address), (address,))


def _optional(variable: str | None) -> str | None:
    return None if variable is None else secret(variable)


def _known(*values: str | None) -> tuple[str, ...]:
    return tuple(value for value in values if value is not None)
