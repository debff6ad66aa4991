"""Whether what is served predicts what was trained, form by form, as the export and the engine measured it."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.evaluation import EvalReport
from pipelines.exported import QuantizedModel
from pipelines.parity import Agreement


@dataclass(frozen=True)
class Form:
    """One form that the model takes on its way into service."""

    name: str
    agreement: Agreement


def forms(model: QuantizedModel | None, report: EvalReport) -> tuple[Form, ...]:
    """Every form that was compared with base and adapter in bf16."""
    parity = model.parity if model else None
    found = {
        "base without the adapter": parity.base if parity else None,
        "as trained: base in NF4": parity.nf4 if parity else None,
        "merged, bf16": parity.merged if parity else None,
        "exported files": parity.exported if parity else None,
        "served by the engine": report.served_parity,
    }
    return tuple(Form(name, agreement) for name, agreement in found.items() if agreement is not None)
