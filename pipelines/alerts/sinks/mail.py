"""Mail by SMTP, over TLS unless the server is a relay on this machine."""

from __future__ import annotations

import logging
import smtplib
import socket
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from pipelines.alerts.message import Message
from pipelines.alerts.sinks.sink import SinkFailed
from pipelines.config_alerts import SmtpSink

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mail:
    """One mail to all recipients."""

    config: SmtpSink
    password: str | None

    def __call__(self, message: Message, seconds: float) -> None:
        try:
            with self._connected(seconds) as server:
                if self.config.user is not None and self.password is not None:
                    server.login(self.config.user, self.password)
                refused = server.send_message(self._mail(message))
        except UnicodeError:  # whose words would show a letter of the password
            raise SinkFailed("user, password and addresses must be ASCII: this server takes nothing else") from None
        except (OSError, smtplib.SMTPException) as error:
            raise SinkFailed(f"{type(error).__name__}: {error}") from None
        if refused:  # no failure: the others would be sent it again and again, for one mailbox that is gone
            log.warning("taken for some, refused for %s; correct alerts.sinks", ", ".join(sorted(refused)))

    def _connected(self, seconds: float) -> smtplib.SMTP:
        config, us = self.config, socket.gethostname()
        trusted = ssl.create_default_context()
        if config.security == "tls":
            return smtplib.SMTP_SSL(config.host, config.port, us, timeout=seconds, context=trusted)
        server = smtplib.SMTP(config.host, config.port, us, timeout=seconds)
        if config.security == "starttls":
            server.starttls(context=trusted)
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["From"] = self.config.sender
        mail["To"] = ", ".join(self.config.recipients)
        mail["Subject"] = message.title
        mail["Date"] = formatdate()
        mail["Message-ID"] = make_msgid(domain=self.config.sender.partition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"  # so that no absence note answers it
        mail.set_content(message.text)
        return mail
