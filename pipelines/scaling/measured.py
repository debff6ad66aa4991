"""What one retrain takes, from figures that were measured; each names where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

RESULTS = "benchmarks/RESULTS.md"


def figure(value: float, unit: str, source: str) -> Any:
    """A field with its default, its unit and its source."""
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Qwen3-VL-30B-A3B by `configs/qwen3_vl_30b.yaml`; rates on one H200 of which 48 GiB are used."""

    tokens: float = figure(
        1000 * 16 * 1536, "tokens", "configs/qwen3_vl_30b.yaml: 1,000 steps of 16 rows; rows as in the benchmark"
    )
    tokens_per_s: float = figure(12_376, "tokens/s", f"{RESULTS}: QLoRA, 48 layers, 6,144 tokens a step")
    first_step_s: float = figure(8.7, "s", f"{RESULTS}: QLoRA, 48 layers, first step")
    base_gb: float = figure(62.1, "GB", f"{RESULTS}: QLoRA, 48 layers")
    export_gb_per_s: float = figure(22.3 / 28.4, "GB of the base/s", f"{RESULTS}: export of 16 layers on a GPU machine")
    disk_gb_per_s: float = figure(
        (22.3 + 12.3) / 24.7, "GB/s", f"{RESULTS}: the same machine, read, then write: the faster of two"
    )
    served_gb: float = figure(33, "GB", "configs/qwen3_vl_30b.yaml: an export in INT8")
    engines: float = figure(2, "", "serving.evaluate: the base and the candidate, in INT8, one after the other")
    engine_ready_s: float = figure(
        185, "s", f"{RESULTS}: serving at the exact shape; weights were not read from a disk"
    )
    questions: float = figure(1000, "questions", "assumed, for each engine; sets the power of the gate")
    questions_per_min: float = figure(
        212, "questions/min", f"{RESULTS}: serving, 4 in flight; 16 as configured were not measured"
    )
    gate_s: float = figure(1.5, "s", "output.json of a run of the embedded default on two cores")
    register_s: float = figure(1.1, "s", "output.json of a run of the embedded default on two cores")
    tasks: float = figure(8, "tasks", "dags/retrain.py: the run is opened, then seven steps")
    task_s: float = figure(1.0, "s", "seen with the embedded Airflow: scheduling of one task; all are taken as serial")

    slower: float = figure(1.0, "times", "stated by the user: what the card takes, where an H200 takes 1")
    spread: float = figure(0.5, "", "assumed: standard deviation of a retrain's tokens, as a share of their mean")

    def __post_init__(self) -> None:
        """Refuse what no machine has."""
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name != "spread"):
                raise ValueError(f"{one.name} is {value}; it must be above 0")

    @property
    def finetune_s(self) -> float:
        """Of an average retrain, once the base is loaded."""
        return self.slower * (self.first_step_s + self.tokens / self.tokens_per_s)

    @property
    def evaluate_s(self) -> float:
        """On the card: engines that get ready, and their questions."""
        return self.engines * self.slower * (self.engine_ready_s + 60 * self.questions / self.questions_per_min)

    @property
    def disk_s(self) -> tuple[float, float, float]:
        """Of the disk, while the card waits: loading the base, the export, loading what is served."""
        load, served = self.base_gb / self.disk_gb_per_s, self.engines * self.served_gb / self.disk_gb_per_s
        return load, self.base_gb / self.export_gb_per_s, served

    @property
    def scheduler_s(self) -> float:
        """Of the one scheduler."""
        return self.tasks * self.task_s

    @property
    def registry_s(self) -> float:
        """Of the one machine that judges and registers."""
        return self.gate_s + self.register_s
