"""The last snapshot as Prometheus reads it: a file, and an address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipelines.errors import BadInput
from pipelines.monitoring.series import HELP, Value


class Latest(Collector):
    """What was seen last."""

    def __init__(self) -> None:
        self.values: Sequence[Value] = ()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family a name."""
        values = self.values
        for name, said in HELP.items():
            if found := [value for value in values if value.name == name]:
                family = GaugeMetricFamily(name, said, labels=tuple(found[0].labels))
                for value in found:
                    family.add_metric(tuple(value.labels.values()), value.value)
                yield family

    @property
    def text(self) -> str:
        """In Prometheus' own form."""
        return generate_latest(self.registry).decode()

    @contextmanager
    def listening(self, address: str | None) -> Iterator[None]:
        """Answer at `HOST:PORT` while the block runs.

        Raises:
            BadInput: It is none, or taken.
        """
        if address is None:
            yield
            return
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or not host:
            raise BadInput(f"{address} is no HOST:PORT; such as 127.0.0.1:8805")
        try:
            server, thread = start_http_server(int(port), addr=host, registry=self.registry)
        except (OSError, OverflowError) as error:
            raise BadInput(f"{address} cannot be listened on: {error}; name another port") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
