"""A run with everything that the page shows: pictures, questions, answers that changed, and the gate's own decision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.answers import read_answers, write_answers
from pipelines.artifacts import BaseSnapshot, Dataset, GateDecision
from pipelines.evaluation import EvalReport
from pipelines.gate import decide
from pipelines.judgement.side import Side, read_side
from pipelines.page.page import write_page
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import DOWNLOAD, EVALUATE, GATE, PREPARE
from tests.pipelines.finished_run import SLICES, evaluated_run


@dataclass(frozen=True)
class Judged:
    """A run, and what the page is made of."""

    run: Run
    report: EvalReport
    reference: Side | None
    decision: GateDecision

    def page(self) -> Path:
        """Write the page as the gate does."""
        folder = self.run.folder(GATE)
        folder.mkdir(exist_ok=True)
        return write_page(self.run.config, folder, self.report, self.reference, self.decision)


def judged(settings: Settings, name: str = "judged", *, wrong: int = 30, champion: str | None = None) -> Judged:
    """A run whose candidate has so many wrong digits, judged against its base or a champion of an earlier run."""
    run = evaluated_run(settings, name, "page", wrong)
    asked(run)
    report = run.read(EVALUATE)
    if champion is None:
        reference = read_side(report, "base", "base")
    else:
        reference = read_side(Run(settings.runs / champion).read(EVALUATE), "candidate", "champion v1")
    return Judged(run, report, reference, decision(run, report, reference))


def decision(run: Run, report: EvalReport, reference: Side | None) -> GateDecision:
    """The gate's own."""
    candidate, merged = read_side(report, "candidate", "candidate"), read_side(report, "merged", "merged bf16")
    return decide(run.config.gate, candidate, reference, merged, reference.name if reference else "base")


def asked(run: Run) -> None:
    """Prepare the questions of the answers that are there, each with a picture."""
    data = run.folder(PREPARE) / "data"
    (data / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), "teal").save(data / "images" / "one.png")
    rows = [row(f"{name}-{number}", name) for name, count in SLICES.items() for number in range(count)]
    (data / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    run.folder(DOWNLOAD).mkdir(exist_ok=True)
    base = BaseSnapshot(
        path=run.root / "gone", source="builtin://tiny", revision="c" * 40, digest="b" * 64, architecture="Tiny"
    )
    run.write(DOWNLOAD, base, seconds=1, peak_gib=0.1)
    dataset = Dataset(
        path=data, digest="d" * 64, test_digest="t" * 64, rows={"train": 10, "test": len(rows)}, slices={}, rejects=(),
        tokens=(), visual_share=0.2,
    )  # fmt: skip
    run.write(PREPARE, dataset, seconds=1, peak_gib=0.1)


def row(item: str, name: str, prompt: str = "Which digit is this?", image: str = "images/one.png") -> dict[str, Any]:
    """A row of the test split."""
    parts = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "y"}]}
    return {"id": item, "slice": name, "messages": [{"role": "user", "content": parts}, answer]}


def answer_otherwise(run: Run, subject: str, texts: dict[str, str]) -> None:
    """Let a model have answered some items with other words."""
    evaluation = run.read(EVALUATE).subject(subject)
    assert evaluation is not None
    answers = read_answers(evaluation.answers)
    changed = [each.model_copy(update={"text": texts.get(item, each.text)}) for item, each in answers.items()]
    write_answers(evaluation.answers, changed)
