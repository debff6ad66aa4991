"""Plays the interpreter of an environment: cheap steps, a front, a service, its watch and an answer; else real Python.

The one seam of the tests around Airflow: `Settings.ml_python` and `Settings.core_python` point to a script that starts
this module, so that everything above a step's process is the real thing. What a step is to do is said by files in the
run's directory, written by the test: see `plan`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from pipelines import artifacts as a
from pipelines.answers import ANSWERS, write_answers
from pipelines.artifact import Artifact
from pipelines.errors import DONE, REJECTED, BadInput, PromotionFailed
from pipelines.evaluation import Answer, EvalReport, Evaluation, Score
from pipelines.exported import QuantizedModel
from pipelines.parity import Agreement, Parity
from pipelines.run import Run
from pipelines.settings import Settings
from pipelines.steps import STEPS

SLICES = ("digits", "printed", "colours", "shapes")
RIGHT = {"base": 37, "merged": 95, "candidate": 95}
PLAN = "plan.json"


def plan(home: Path, **behaviour: object) -> None:
    """Say how the steps of this home behave: `gate="fail"`, `fail={"finetune": [1, 0]}` (exit codes by attempt)."""
    home.mkdir(parents=True, exist_ok=True)
    (home / PLAN).write_text(json.dumps(behaviour))


def install(folder: Path) -> str:
    """Write the script that stands for an interpreter and return its path."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def main(arguments: list[str]) -> int:
    """Play `-m MODULE ...`."""
    module, *rest = arguments[1:] if arguments[:1] == ["-m"] else [""]
    if module == "pipelines.execute" and rest[1] not in _plan().get("real", []):
        return _step(Run.open(Path(rest[0])), rest[1])
    if module == "serving.front":
        return _front()
    if module == "serving.watch":
        time.sleep(86_400)
    if module == "serving.service":
        (Settings().home / f"service-{rest[0]}").touch()
        return DONE
    if module == "serving.monitor":
        (Settings().home / "looked").touch()
        return int(str(_plan().get("monitor", DONE)))
    if module == "serving.ask":
        print("seven")
        return DONE
    return os.execv(sys.executable, [sys.executable, *arguments])


def _plan() -> dict[str, object]:
    path = Settings().home / PLAN
    return json.loads(path.read_text()) if path.is_file() else {}


def _step(run: Run, name: str) -> int:
    step, behaviour = STEPS[name], _plan()
    print(f"playing {name}", flush=True)
    if name == behaviour.get("sleeps"):
        with run.claim(step):
            (run.root / "sleeping").write_text(str(os.getpid()))
            time.sleep(600)
    codes = dict(behaviour.get("fail", {})).get(name, [])
    attempt = len(list(run.root.glob(f"{name}.attempt*")))
    (run.root / f"{name}.attempt{attempt}").touch()
    if attempt < len(codes) and codes[attempt] != DONE:
        run.folder(step).mkdir(exist_ok=True)
        run.write_failure(step, (PromotionFailed if behaviour.get("undone") else BadInput)("told to fail"))
        return codes[attempt]
    run.folder(step).mkdir(exist_ok=True)
    forgets = run.config.data.replay == 0
    artifact = artifacts(run, "fail" if forgets else str(behaviour.get("gate", "pass")))[name]
    run.write(step, artifact, seconds=0.5, peak_gib=0.1)
    if name == "promote" and "target" in behaviour.get("real", []):
        from pipelines.registry import Registry

        Registry(Settings(), artifact.name).confirm(artifact.version)
    return DONE if artifact.proceed else REJECTED


def _agreement(mean_kl: float) -> Agreement:
    return Agreement(mean_kl=mean_kl, max_kl=2 * mean_kl, top1=0.875, positions=64)


def _evaluation(run: Run, subject: str, correct: int) -> Evaluation:
    folder = run.root / "evaluate" / subject
    folder.mkdir(parents=True, exist_ok=True)
    answers = folder / ANSWERS
    answer = Answer(item="1", slice="digits", expected="7", text="7", finish_reason="stop", seconds=0.1)
    write_answers(answers, [answer])
    score = Score(correct=correct, n=100, low=correct / 100 - 0.05, high=min(1, correct / 100 + 0.05))
    return Evaluation(
        subject=subject, model_digest="1" * 64, scheme="bf16", answers=answers,
        scores=dict.fromkeys(SLICES, score),
        start_seconds=1, answer_seconds=1, requests_per_minute=60, latency_p50_ms=1, latency_p99_ms=2, peak_gib=0.1,
    )  # fmt: skip


def artifacts(run: Run, gate: str) -> dict[str, Artifact]:
    folder = run.root / "files"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "golden.jsonl").touch()
    (folder / "scan.png").touch()
    asked = [{"type": "image", "image": "scan.png"}, {"type": "text", "text": "Which digit is this?"}]
    told = [{"type": "text", "text": "seven"}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    (folder / "test.jsonl").write_text(json.dumps({"id": "1", "slice": "digits", "messages": messages}) + "\n")
    config, digest = run.config, "ab" * 32
    findings = [a.Finding(name=name, outcome="pass", reason=f"{name}: 37 to 95 of 100") for name in SLICES]
    if gate != "pass":
        findings[2] = a.Finding(name="colours", outcome="fail", reason="colours: 90 to 35 of 100, forgotten")
    version = a.ModelVersion(
        name=config.registry.model, version=1, uri=(folder / "model").as_uri(), digest=digest,
        serving=config.serving.model_dump_json(), golden=str(folder / "golden.jsonl"), tracking_run="r",
    )  # fmt: skip
    if (target := run.root / "target" / "output.json").is_file():
        version = a.ModelVersion.model_validate(json.loads(target.read_text())["artifact"])
    return {
        "download": a.BaseSnapshot(
            path=folder, source="builtin://x", revision="c" * 40, digest=digest, architecture="X"
        ),
        "prepare": a.Dataset(
            path=folder, digest=digest, test_digest=digest, rows={"test": 1}, slices={"test": {"digits": 1}},
            rejects=(), tokens=(0, 5), visual_share=0.5,
        ),
        "finetune": a.Adapter(
            path=folder, digest=digest, base_digest=digest, trainable_parameters=10, steps=5, stopped_early=False,
            best_step=5, loss=0.1, eval_loss=0.2, tokens_per_second=100, padding_share=0.1, tokens_per_batch=8192,
            peak_gib=0.5, memory={},
        ),
        "export": QuantizedModel(
            path=folder / "model", digest=digest, scheme="int8_w8a8", size_bytes=2_000_000, base_digest=digest,
            adapter_digest=digest, quantized_base_path=folder / "model", quantized_base_digest=digest,
            merged_path=folder / "model", merged_digest=digest, merged_bytes=4_000_000,
            group_size=None, quantized_tensors=9, verified_tensors=9, relative_error=0.01, delta_norm=0.1,
            stream_seconds=2, mb_per_second=2, peak_rss_gib=0.5,
            parity=Parity(
                golden=folder / "golden.jsonl", prompts=8, images=8, base=_agreement(3.5), nf4=_agreement(0.02),
                merged=_agreement(0.00001), exported=_agreement(0.0042), seconds=1,
            ),
        ),
        "evaluate": EvalReport(
            engine="fake 1", test_digest=digest, prompt_digest=digest, golden=folder / "golden.jsonl",
            evaluations=tuple(_evaluation(run, subject, right) for subject, right in RIGHT.items()),
            served_parity=_agreement(0.0051),
        ),
        "gate": a.GateDecision(outcome=gate, reference="base", findings=tuple(findings)),
        "register": version,
        "target": version,
        "promote": a.Deployment(
            endpoint="http://127.0.0.1", name=version.name, version=version.version, previous=None, strategy="restart",
            hold_seconds=1, probe_matched=8, probe_asked=8,
        ),
    }  # fmt: skip


def _front() -> int:
    with socket.create_server(("127.0.0.1", Settings().front_port)):
        while True:
            time.sleep(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
