"""The section `load` of the config."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.section import Section


class Slo(Section):
    """What a request must keep to be counted as good. None: not asked for."""

    ttft_ms: float | None = Field(None, gt=0)
    """To the first token."""

    tpot_ms: float | None = Field(None, gt=0)
    """For each token after the first, on average."""

    e2e_ms: float | None = Field(None, gt=0)
    """For the whole answer."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.ttft_ms is self.tpot_ms is self.e2e_ms is None:
            raise ValueError("say ttft_ms, tpot_ms or e2e_ms, or leave out load.slo")
        return self


class Load(Section):
    """What `vlmops compare` puts on an engine: the questions of the test split, no two with the same picture."""

    concurrencies: tuple[int, ...] = Field((1, 4, 8, 16))
    """Closed loop: so many requests in flight, a new one when one ends. A point each."""

    rates: tuple[float, ...] = ()
    """Open loop: so many requests a second on average, whether earlier ones have ended or not. A point each."""

    requests: int = Field(300, ge=2)
    """Measured requests of one run."""

    warmup: int = Field(16, ge=0)
    """Requests before each point that are not measured."""

    repeats: int = Field(3, ge=1)
    """Runs of each point; the interval is over them. One run has none."""

    output_tokens: int = Field(64, ge=2)
    """Every answer is exactly so long, whatever the model would say, so that schemes have the same work."""

    slo: Slo | None = None
    """Service level for the goodput. None: no goodput."""

    @model_validator(mode="after")
    def _has_points(self) -> Self:
        if not self.concurrencies and not self.rates:
            raise ValueError("no point to measure; name load.concurrencies or load.rates")
        if wrong := [value for value in (*self.concurrencies, *self.rates) if value <= 0]:
            raise ValueError(f"load.concurrencies and load.rates must be above 0, not {wrong}")
        return self
