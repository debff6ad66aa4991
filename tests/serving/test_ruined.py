"""The real gate on real answers: models that were ruined on their way are refused, and for the right reason.

A small mixture of experts that knows colours and shapes, and copies of its files: with all experts zero, as after a
merge that lost them, and with the rows of the head in another order, as after one that took another vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifacts import Finding, GateDecision
from pipelines.config import Config
from pipelines.config_gate import Gate, Requirement
from pipelines.evaluation import Answer
from pipelines.gate import decide
from pipelines.scores import scores
from serving.engine import Launch, engine
from serving.measure import measure
from serving.questions import Question, read_questions
from tests.pipelines.judgement.sides import side
from training.builtin.build import build_base
from training.builtin.drawings import draw_many
from training.builtin.recipe import Recipe

ITEMS = {"colours": 60, "shapes": 60}
RULES = Gate(requirements=tuple(Requirement(slice=name, margin=0.1, minimum=0.7) for name in ITEMS))

Tensors = dict[str, torch.Tensor]
Answers = Mapping[str, Answer]


def zero_experts(tensors: Tensors) -> None:
    names = [name for name in tensors if ".experts." in name]
    assert names
    for name in names:
        tensors[name].zero_()


def shuffle_head(tensors: Tensors) -> None:
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = head[torch.randperm(len(head), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def answered(smoke: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    """What the sound model and the ruined ones answer, each served by vLLM."""
    folder = tmp_path_factory.mktemp("ruined")
    sound = folder / "sound"
    recipe = Recipe("moe", steps=150, batch_size=16, pictures={"colours": 400, "shapes": 800})
    build_base(recipe, sound)
    models = {
        "sound": sound,
        "zeroed": _ruined(sound, folder / "zeroed", zero_experts),
        "shuffled": _ruined(sound, folder / "shuffled", shuffle_head),
    }
    return _answers(models, _questions(folder / "data"), smoke, folder)


def _ruined(sound: Path, folder: Path, ruin: Callable[[Tensors], None]) -> Path:
    shutil.copytree(sound, folder)
    tensors = load_file(folder / "model.safetensors")
    ruin(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _questions(folder: Path) -> tuple[Question, ...]:
    folder.mkdir()
    rows = []
    for number, drawing in enumerate(draw_many(ITEMS, seed=7)):
        drawing.image.save(folder / f"{number}.png")
        asked = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": drawing.question}]
        told = [{"type": "text", "text": drawing.answer}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        rows.append({"id": str(number), "slice": drawing.slice, "messages": messages})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(folder)


def _answers(
    models: Mapping[str, Path], questions: tuple[Question, ...], smoke: Config, folder: Path
) -> dict[str, Answers]:
    """All engines start together: most of that is one core importing Python."""
    with ExitStack() as stack:
        started = {}
        for name, model in models.items():
            launch = Launch(
                model=model, names=(name,), serving=smoke.serving, images=smoke.images, hardware=smoke.hardware
            )
            started[name] = stack.enter_context(engine(launch, folder / f"{name}.log"))
        found = {}
        for name, one in started.items():
            one.wait_ready(smoke.serving.start_seconds)
            measured = measure(one.url, name, questions, max_tokens=12, concurrency=16, tick=lambda: None)
            found[name] = {answer.item: answer for answer in measured.answers}
        return found


def judged(answered: Mapping[str, Answers], candidate: str) -> GateDecision:
    return decide(RULES, side(answered[candidate]), side(answered["sound"], "champion v1"), None, "champion v1")


def test_the_sound_model_passes(answered: dict[str, Answers]) -> None:
    decision = judged(answered, "sound")
    assert decision.outcome == "pass", decision
    assert min(score.share for score in scores(answered["sound"].values()).values()) > 0.8


def refused(answered: Mapping[str, Answers], candidate: str) -> dict[str, Finding]:
    decision = judged(answered, candidate)
    assert decision.outcome == "fail"
    return {finding.name: finding for finding in decision.findings if finding.outcome == "fail"}


def test_without_its_experts_a_model_still_tells_colours_and_is_refused_for_shapes(
    answered: dict[str, Answers],
) -> None:
    """Whole sentences, none empty, none cut: only the slice shows it."""
    failed = refused(answered, "zeroed")
    assert "shapes" in failed
    assert failed.keys() <= set(ITEMS)
    assert "below the minimum 70.0%" in failed["shapes"].reason
    assert failed["shapes"].upper is not None
    assert failed["shapes"].upper < -0.1  # surely a loss beyond the margin, too


def test_a_model_that_talks_nonsense_is_refused_for_every_slice_and_for_never_ending(
    answered: dict[str, Answers],
) -> None:
    failed = refused(answered, "shuffled")
    assert failed.keys() == {*ITEMS, "cut"}
    assert failed["colours"].reason == "0 of 60 right (0.0%) is below the minimum 70.0%"
    assert "120 of 120 answers are cut" in failed["cut"].reason
