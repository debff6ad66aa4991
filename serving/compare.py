"""One contender of `vlmops compare`: served, asked the test questions, put under load.

`python -m serving.compare FOLDER`, where FOLDER has a `contender.json`; leaves `measured.json`, or `failure.json`. A
measurement that is there, and of the same things, is kept, unless a point of its load is invalid.

The sealed questions are asked and nothing is decided by them: no attempt at the gate.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from pipelines.answers import write_answers
from pipelines.comparison.rows import CONTENDER, FAILURE, MEASURED, Contender, Failure, Measured
from pipelines.errors import DONE, FAILED, VlmopsError
from pipelines.evaluation import Answer
from pipelines.progress import counting
from pipelines.scores import scores
from pipelines.system.durable import write_text
from pipelines.system.manifest import verify_manifest
from pipelines.system.processes import end_cleanly_on_sigterm
from serving.engine import VLLM, Engine, Launch, engine, options
from serving.load.bench import Target
from serving.load.points import measure_load
from serving.load.prompts import prompts_of
from serving.measure import measure
from serving.memory import PeakMemory
from serving.questions import Question, read_questions
from serving.records import ANSWERS

log = logging.getLogger(__name__)


def measure_contender(folder: Path, program: tuple[str, ...] = VLLM) -> Measured:
    """Measure what `contender.json` names, unless that is done.

    Raises:
        EngineFailed: The engine or its client did not start.
        EvaluationInvalid: Test questions were lost.
        ManifestMismatch: The model or the questions are not those that were named.
    """
    contender = Contender.model_validate_json((folder / CONTENDER).read_text())
    flags = options(contender.serving, contender.images, contender.hardware)
    key = contender.key(" ".join((f"vLLM {version('vllm')}", *flags)))
    if (kept := _kept(folder, key)) is not None:
        log.info("%s was already measured; its figures are kept", contender.name)
        return kept
    verify_manifest(contender.model, contender.digest)
    verify_manifest(contender.data, contender.data_digest)
    measured = _measure(contender, key, folder, program)
    write_text(folder / MEASURED, measured.model_dump_json(indent=1))
    return measured


def _kept(folder: Path, key: str) -> Measured | None:
    if not (folder / MEASURED).is_file():
        return None
    try:
        found = Measured.model_validate_json((folder / MEASURED).read_text())
    except ValidationError:  # of another version of vlmops
        return None
    whole = not found.load.objections and found.answers.is_file()
    return found if whole and found.key == key else None


def _measure(contender: Contender, key: str, folder: Path, program: tuple[str, ...]) -> Measured:
    output = folder / "engine.log"
    output.unlink(missing_ok=True)  # what it says of the KV cache must be of this engine
    questions = spread(read_questions(contender.data), contender.questions)
    with engine(_launch(contender, program), output) as started:
        watched = PeakMemory(started.pid, of="card" if contender.hardware.device == "cuda" else "processes")
        with watched as memory:
            seconds = started.wait_ready(contender.serving.start_seconds)
            answers = _ask(contender, started, questions)
            target = Target(started.url, contender.serving.name, contender.model)
            load = measure_load(target, prompts_of(questions), contender.load, folder / "load", memory)
    write_answers(folder / ANSWERS, answers)
    return Measured(
        key=key,
        engine=load.engine,
        answers=folder / ANSWERS,
        scores=scores(answers),
        start_seconds=seconds,
        kv_tokens=kv_tokens_said(output),
        load=load,
    )


def _launch(contender: Contender, program: tuple[str, ...]) -> Launch:
    return Launch(
        model=contender.model,
        names=(contender.serving.name,),
        serving=contender.serving,
        images=contender.images,
        hardware=contender.hardware,
        program=program,
        extra=("--dtype", "float16") if contender.name == "fp16" else (),
    )


def _ask(contender: Contender, started: Engine, questions: Sequence[Question]) -> tuple[Answer, ...]:
    settings = contender.evaluate
    with counting(f"asking {contender.name}", len(questions)) as tick:
        measured = measure(
            started.url,
            contender.serving.name,
            questions,
            max_tokens=settings.max_new_tokens,
            concurrency=settings.concurrency,
            tick=tick,
        )
    return measured.answers


def spread(questions: Sequence[Question], number: int | None) -> tuple[Question, ...]:
    """So many of the questions, evenly spread over all of them, so that every slice keeps its share."""
    total = len(questions)
    if number is None or number >= total:
        return tuple(questions)
    return tuple(questions[index * total // number] for index in range(number))


def kv_tokens_said(log_file: Path) -> int | None:
    """Tokens that the KV cache holds, as the engine's log says; None if it says nothing of it."""
    said = re.search(r"KV cache size: ([\d,]+) tokens", log_file.read_text(errors="replace"))
    return int(said[1].replace(",", "")) if said else None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    [given] = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_cleanly_on_sigterm()
    folder = Path(given)
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        measure_contender(folder)
    except VlmopsError as error:
        write_text(folder / FAILURE, Failure(reason=str(error)).model_dump_json())
        sys.stderr.write(f"vlmops: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
