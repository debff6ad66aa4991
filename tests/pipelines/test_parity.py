"""Limits on what an exported model may predict otherwise: each on its own, named with its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config_export import Parity as Limits
from pipelines.errors import ExportRejected
from pipelines.parity import Agreement, GoldenPrompt, Parity, read_golden_prompts, require_agreement, require_parity
from pipelines.schemes import SCHEMES
from pipelines.tracking import numbers

INT8, INT4 = SCHEMES["int8_w8a8"], SCHEMES["int4_w4a16"]
LIMITS = Limits(max_kl=0.05, max_kl_int4=0.2, max_share=0.5, min_top1=0.9)


def _found(mean_kl: float, top1: float = 1.0) -> Agreement:
    return Agreement(mean_kl=mean_kl, max_kl=2 * mean_kl, top1=top1, positions=40)


def _parity(exported: Agreement, merged: Agreement | None, base: Agreement | None = None) -> Parity:
    return Parity(
        golden=Path("prompts.jsonl"), prompts=8, images=8, base=base, nf4=_found(9), merged=merged,
        exported=exported, seconds=1,
    )  # fmt: skip


def test_what_is_within_the_limits_passes() -> None:
    require_agreement("exported", _found(0.05, 0.9), _found(0.1), INT8, LIMITS)
    require_agreement("exported", _found(0.2, 0.9), None, INT4, LIMITS)


@pytest.mark.parametrize(
    ("found", "base", "why"),
    [
        (_found(0.051), None, r"mean KL 0\.051 nats, .*allowed are 0\.05 \(max_kl\)"),
        (_found(0.01), _found(0.019), r"mean KL 0\.01 nats, .*0\.5 of the 0\.019 that the adapter makes \(max_share\)"),
        (_found(0.01, 0.89), None, r"same likeliest token at 89\.0%, needed are 90\.0% \(min_top1\)"),
        (_found(float("nan")), None, "mean KL nan"),
        (_found(0.01), _found(float("nan")), "the served model"),
    ],
)
def test_each_limit_refuses_on_its_own(found: Agreement, base: Agreement | None, why: str) -> None:
    with pytest.raises(ExportRejected, match=why):
        require_agreement("served", found, base, INT8, LIMITS)


def test_four_bits_have_a_limit_of_their_own_and_a_merge_does_not_share_it() -> None:
    require_parity(_parity(_found(0.15), _found(0.001)), INT4, LIMITS)
    with pytest.raises(ExportRejected, match="exported model"):
        require_parity(_parity(_found(0.15), _found(0.001)), INT8, LIMITS)
    with pytest.raises(ExportRejected, match="merged model"):
        require_parity(_parity(_found(0.15), _found(0.15)), INT4, LIMITS)


def test_what_was_trained_is_information_only() -> None:
    require_parity(_parity(_found(0.01), None), INT8, LIMITS)


def test_figures_have_names_in_mlflow() -> None:
    logged = dict(numbers(_parity(_found(0.01), None).model_dump(mode="json"), "export.parity"))
    assert logged["export.parity.exported.mean_kl"] == 0.01
    assert logged["export.parity.nf4.top1"] == 1
    assert not [name for name in logged if "merged" in name]


def test_prompts_are_read_as_they_were_written(tmp_path: Path) -> None:
    messages = ({"role": "user", "content": [{"type": "text", "text": "a\u2028b"}]},)
    prompt = GoldenPrompt(
        item="p", messages=messages, token_ids=(1, 2), positions=(1,), top_ids=((2, 3),), top_logprobs=((-0.1, -3),)
    )
    (tmp_path / "prompts.jsonl").write_text(2 * (prompt.model_dump_json() + "\n"))
    assert read_golden_prompts(tmp_path / "prompts.jsonl") == (prompt, prompt)
