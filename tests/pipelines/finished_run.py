"""A run whose steps have finished with plausible results, for tests of what comes after them."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.answers import ANSWERS, write_answers
from pipelines.artifacts import Adapter, GateDecision
from pipelines.config import Config
from pipelines.config_file import load_config
from pipelines.evaluation import Answer, EvalReport, Evaluation, Score
from pipelines.exported import QuantizedModel
from pipelines.run import Run
from pipelines.settings import ROOT, Settings
from pipelines.statistics import wilson
from pipelines.steps import EVALUATE, EXPORT, FINETUNE, GATE

SLICES = {"digits": 600, "printed": 200, "colours": 120, "shapes": 120}


def config(model: str) -> Config:
    """The embedded default under another registered name, so that tests share a server but no versions."""
    return load_config(ROOT / "configs" / "smoke.yaml", (f"registry.model={model}",))


def evaluation(folder: Path, subject: str, wrong: int) -> Evaluation:
    """An evaluation with `wrong` wrong digits, its answers on disk."""
    (folder / subject).mkdir(parents=True, exist_ok=True)
    answers = [
        Answer(
            item=f"{name}-{number}",
            slice=name,
            expected="y",
            text="n" if name == "digits" and number < wrong else "y",
            finish_reason="stop",
            seconds=0.05,
        )
        for name, count in SLICES.items()
        for number in range(count)
    ]
    write_answers(folder / subject / ANSWERS, answers)
    scores = {}
    for name, n in SLICES.items():
        correct = n - wrong if name == "digits" else n
        low, high = wilson(correct, n)
        scores[name] = Score(correct=correct, n=n, low=low, high=high)
    return Evaluation(
        subject=subject,  # type: ignore[arg-type]
        model_digest=subject[0] * 64,
        scheme="bf16",
        answers=folder / subject / ANSWERS,
        scores=scores,
        metrics={"x-ray/sensitivity/fracture (open)": Score(correct=9, n=10, low=0.6, high=0.98)},
        start_seconds=30,
        answer_seconds=20,
        requests_per_minute=1800,
        latency_p50_ms=40,
        latency_p99_ms=90,
        peak_gib=1.5,
    )


def evaluated_run(settings: Settings, name: str, model: str, wrong: int = 30) -> Run:
    """A run that has everything up to the evaluation."""
    run = Run.create(settings.runs / name, config(model))
    exported, evaluated = run.folder(EXPORT), run.folder(EVALUATE)
    report = EvalReport(
        engine="vllm 0.32.0",
        test_digest="t" * 64,
        prompt_digest="p" * 64,
        evaluations=(
            evaluation(evaluated, "base", 380),
            evaluation(evaluated, "merged", wrong),
            evaluation(evaluated, "candidate", wrong),
        ),
        golden=evaluated / "golden",
    )
    _write(run, FINETUNE, adapter(run))
    (run.folder(FINETUNE) / "history.jsonl").write_text(
        "".join(json.dumps({"step": at, "loss": 2.0 / at, "learning_rate": 1e-3}) + "\n" for at in range(1, 11))
        + json.dumps({"step": 10, "eval_loss": 0.25})
    )
    _write(run, EXPORT, exported_model(exported / "model"))
    _write(run, EVALUATE, report)
    return run


def decide(run: Run, outcome: str) -> GateDecision:
    """Finish the gate with an outcome."""
    decision = GateDecision(outcome=outcome, reference="base", findings=())  # type: ignore[arg-type]
    _write(run, GATE, decision)
    return decision


def adapter(run: Run) -> Adapter:
    """A trained adapter."""
    return Adapter(
        path=run.folder(FINETUNE) / "adapter", digest="a" * 64, base_digest="b" * 64, trainable_parameters=64_500,
        steps=10, stopped_early=False, best_step=10, loss=0.2, eval_loss=0.25, tokens_per_second=9000,
        padding_share=0.1, tokens_per_batch=8192, peak_gib=1.2, memory={},
    )  # fmt: skip


def exported_model(path: Path) -> QuantizedModel:
    """An exported model."""
    return QuantizedModel(
        path=path, digest="e" * 64, scheme="int8_w8a8", size_bytes=2_000_000, base_digest="b" * 64,
        adapter_digest="a" * 64, quantized_base_path=path, quantized_base_digest="q" * 64,
        merged_path=None, merged_digest=None, merged_bytes=None, group_size=None, quantized_tensors=84,
        verified_tensors=24, relative_error=0.007, delta_norm=0.1, stream_seconds=2, mb_per_second=2, peak_rss_gib=0.5,
    )  # fmt: skip


def _write(run: Run, step: object, artifact: object) -> None:
    folder = run.folder(step)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    record = {"inputs": "i", "artifact": artifact.model_dump(mode="json"), "seconds": 12.5, "peak_gib": 0.5}  # type: ignore[attr-defined]
    (folder / "output.json").write_text(json.dumps(record))
