"""The step `evaluate`: base, merged and candidate, each served by the same engine and asked every sealed question, and
every item of the scenario packs that the config names. The champion too, where it was not asked these.

Only what will be served is measured, by the engine that will serve it; the base too, in the candidate's scheme. A
finished measurement is not repeated: a rerun takes up with the subject that is missing, and the base is measured once
per machine and scheme.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import psutil

from pipelines.answers import read_answers
from pipelines.artifacts import BaseSnapshot, Dataset
from pipelines.config import Config
from pipelines.errors import BadInput, EngineFailed, EvaluationInvalid, Unreachable
from pipelines.evaluation import EvalReport, Evaluation
from pipelines.exported import QuantizedModel
from pipelines.parity import Agreement, Parity, require_agreement
from pipelines.progress import counting
from pipelines.registry import Registry
from pipelines.scenarios.metrics import marked_shares
from pipelines.scores import scores
from pipelines.settings import Settings
from pipelines.system.durable import sha256_file
from pipelines.system.manifest import text_digest, verify_manifest
from serving.champion import with_champion
from serving.engine import VLLM, Engine, Launch, engine, options
from serving.golden import choose, golden_digest, write_golden
from serving.measure import latency_ms, measure
from serving.memory import PeakMemory
from serving.parity import served_agreement
from serving.questions import Question, prompt_digest, read_questions
from serving.records import ANSWERS, read_record, recall, remember, write_record
from serving.scenarios import asked_digest, open_scenarios, questions
from serving.subjects import Subject, subjects

log = logging.getLogger(__name__)
LASTING = {"base", "champion"}
"""Measured once on a machine, as they are the same in every run. What is to be judged is measured in its own run."""

ENGINE_BYTES = 2.5 * 2**30
"""Host memory that an engine needs besides weights and KV cache, generously."""


def evaluate(config: Config, folder: Path, base: BaseSnapshot, data: Dataset, model: QuantizedModel) -> EvalReport:
    """Measure the candidate, the base, where it was kept the merged bf16 model, and where it must be the champion.

    Raises:
        BadInput: A scenario pack is not whole, or shows what was trained on.
        EngineFailed: An engine did not start.
        EvaluationInvalid: Requests were lost, and again on every repetition.
        ExportRejected: The candidate as it is served does not predict what was trained.
        ManifestMismatch: A model or the questions are not those that were handed on.
    """
    verify_manifest(data.path, data.digest)
    settings = Settings()
    bench = Bench(config, folder, settings.cache / "evaluations", data, subjects(base, model))
    report = bench.report()
    return with_champion(config, report, lambda: Registry(settings, config.registry.model), bench.measured)


class Bench:
    """The questions, the engine's settings and the folders of one evaluation."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        cache: Path,
        data: Dataset,
        wanted: Sequence[Subject],
        program: tuple[str, ...] = VLLM,
    ) -> None:
        self._config = config
        self._folder = folder
        self._cache = cache
        self._packs = open_scenarios(config, data.path)
        for pack in self._packs:
            log.info("scenario %s: %d items are asked too", pack.pack.name, len(pack.items))
        self._data_digest = data.test_digest
        self._test_digest = asked_digest(data.test_digest, self._packs)
        self._wanted = wanted
        self._program = program
        self._prompt = _same_prompt(config, wanted)
        self._sealed: tuple[Question, ...] = read_questions(data.path)
        self._questions = _distinct(*self._sealed, *questions(self._packs))
        self._engine = f"vLLM {version('vllm')}"
        self._flags = options(config.serving, config.images, config.hardware)
        self._memory: Literal["card", "processes"] = "card" if config.hardware.device == "cuda" else "processes"

    def report(self) -> EvalReport:
        """Measure what is missing, and put everything together."""
        for subject in self._wanted:
            self._reuse(subject)
        self._measure_missing(self._wanted)
        evaluations = tuple(done for subject in self._wanted if (done := self._recorded(subject)) is not None)
        self._require_parity(evaluations)
        golden = self._golden({evaluation.subject: evaluation for evaluation in evaluations})
        return EvalReport(
            engine=self._engine,
            test_digest=self._test_digest,
            data_digest=self._data_digest,
            prompt_digest=self._prompt,
            evaluations=evaluations,
            golden=golden,
            golden_digest=golden_digest(golden),
            served_parity=next((done.parity for done in evaluations if done.subject == "candidate"), None),
            scenarios=tuple(pack.scenario for pack in self._packs),
            concurrency=self._config.evaluate.concurrency,
            hardware=self._config.hardware.name,
            flags=text_digest(*self._flags),
        )

    def measured(self, subject: Subject) -> Evaluation:
        """One more model, asked the same; a finished measurement is not repeated."""
        self._reuse(subject)
        self._measure_missing((subject,))
        [done] = filter(None, [self._recorded(subject)])
        return done

    def _require_parity(self, evaluations: Sequence[Evaluation]) -> None:
        """No matter of luck, so that nothing is repeated."""
        for subject, done in zip(self._wanted, evaluations, strict=True):
            if subject.parity is not None and done.parity is not None:
                export = self._config.export
                require_agreement("served", done.parity, subject.parity.base, export.stored, export.parity)

    def _reuse(self, subject: Subject) -> None:
        key, folder = self._key(subject), self._folder / subject.name
        if read_record(folder, key) is not None:
            log.info("%s was already measured; its answers are kept", subject.name)
        elif subject.name in LASTING and recall(self._cache, folder, key) is not None:
            log.info("%s was measured before on this machine; its answers come from %s", subject.name, self._cache)

    def _recorded(self, subject: Subject) -> Evaluation | None:
        return read_record(self._folder / subject.name, self._key(subject))

    def _key(self, subject: Subject) -> str:
        facts = (self._config.hardware.name, self._memory, str(self._config.evaluate.concurrency), *self._flags)
        model = (subject.name, subject.scheme, subject.digest, *((subject.adapter.digest,) if subject.adapter else ()))
        compared = (sha256_file(subject.parity.golden),) if subject.parity else ()
        return text_digest(*model, *compared, self._test_digest, self._prompt, self._engine, *facts)

    def _measure_missing(self, wanted: Sequence[Subject]) -> None:
        attempts = self._config.evaluate.attempts
        for attempt in range(1, attempts + 1):
            missing = [subject for subject in wanted if self._recorded(subject) is None]
            objections = [text for batch in self._batches(missing) for text in self._measure_batch(batch)]
            if not objections:
                return
            log.warning("measurement %d of %d is invalid: %s", attempt, attempts, "; ".join(objections))
        raise EvaluationInvalid(f"no valid measurement in {attempts} attempts: {'; '.join(objections)}")

    def _batches(self, missing: Sequence[Subject]) -> list[Sequence[Subject]]:
        """Engines that are started together: start-up is mostly one core importing Python, a card has room for one."""
        weights = sum(file.stat().st_size for subject in missing for file in subject.path.glob("*.safetensors"))
        each = self._config.serving.kv_cache_gib * 2**30 + ENGINE_BYTES
        room = weights + each * len(missing) < psutil.virtual_memory().available
        together = self._config.hardware.device == "cpu" and room
        return [missing] if together and missing else [[subject] for subject in missing]

    def _measure_batch(self, batch: Sequence[Subject]) -> list[str]:
        """Measure and record; return why measurements were invalid."""
        objections = []
        with ExitStack() as stack:
            started = [(subject, *self._start(subject, stack)) for subject in batch]
            starts = [engine.wait_ready(self._config.serving.start_seconds) for _, engine, _ in started]
            # One after the other, so that latency and throughput are those of one model alone.
            for (subject, engine, memory), seconds in zip(started, starts, strict=True):
                try:
                    self._measure(subject, engine, memory, seconds)
                except EvaluationInvalid as error:
                    objections.append(f"{subject.name}: {error}")
        return objections

    def _start(self, subject: Subject, stack: ExitStack) -> tuple[Engine, PeakMemory]:
        subject.verify()
        launch = Launch(
            model=subject.path,
            names=(self._config.serving.name,),
            serving=self._config.serving,
            images=self._config.images,
            hardware=self._config.hardware,
            program=self._program,
            adapter=subject.adapter,
        )
        started = stack.enter_context(engine(launch, self._folder / subject.name / "engine.log"))
        return started, stack.enter_context(PeakMemory(started.pid, of=self._memory))

    def _measure(self, subject: Subject, engine: Engine, memory: PeakMemory, start_seconds: float) -> None:
        settings, folder, key = self._config.evaluate, self._folder / subject.name, self._key(subject)
        with counting(f"asking {subject.name}", len(self._questions)) as tick:
            measured = measure(
                engine.url,
                self._config.serving.name,
                self._questions,
                max_tokens=settings.max_new_tokens,
                concurrency=settings.concurrency,
                tick=tick,
            )
        evaluation = Evaluation(
            subject=subject.name,
            model_digest=subject.own_digest,
            scheme=subject.scheme,
            answers=folder / ANSWERS,
            scores=scores(measured.answers),
            metrics=marked_shares(measured.answers),
            start_seconds=start_seconds,
            answer_seconds=measured.seconds,
            requests_per_minute=60 * len(measured.answers) / measured.seconds,
            latency_p50_ms=latency_ms(measured.answers, 50),
            latency_p99_ms=latency_ms(measured.answers, 99),
            peak_gib=memory.gib,
            parity=self._parity(subject.parity, engine.url) if subject.parity else None,
        )
        write_record(folder, key, evaluation, measured.answers)
        if subject.name in LASTING:
            remember(self._cache, folder, key)

    def _parity(self, parity: Parity, url: str) -> Agreement:
        with counting("comparing served predictions", parity.prompts) as tick:
            try:
                return served_agreement(url, self._config.serving.name, parity.golden, tick)
            except (EngineFailed, Unreachable) as error:
                raise EvaluationInvalid(f"its predictions could not be compared: {error}") from None

    def _golden(self, done: dict[str, Evaluation]) -> Path:
        base = {item: answer.text for item, answer in read_answers(done["base"].answers).items()}
        candidate, sealed = read_answers(done["candidate"].answers), {question.item for question in self._sealed}
        own = tuple(answer for item, answer in candidate.items() if item in sealed)  # a probe asks for the task itself
        answers = choose(own, base, self._config.evaluate.golden_items)
        return write_golden(self._folder / "golden", answers, self._sealed, self._config.evaluate.max_new_tokens)


def _distinct(*asked: Question) -> tuple[Question, ...]:
    item, times = Counter(question.item for question in asked).most_common(1)[0]
    if times > 1:
        raise BadInput(f"{item} names {times} questions; rename the item of the pack or the row")
    return asked


def _same_prompt(config: Config, wanted: Sequence[Subject]) -> str:
    tokens = config.evaluate.max_new_tokens
    prompts = {subject.name: prompt_digest(subject.path, config.images, tokens) for subject in wanted}
    if len(set(prompts.values())) != 1:
        raise BadInput(f"chat templates differ, so answers cannot be compared: {prompts}; export the model again")
    return prompts["candidate"]
