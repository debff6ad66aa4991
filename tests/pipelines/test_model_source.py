"""A source that nothing pins is refused with the config, before anything starts."""

from __future__ import annotations

import pytest

from pipelines.config_file import load_config
from pipelines.errors import ConfigError
from pipelines.model_source import Source, parse_source
from pipelines.settings import ROOT

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    "source",
    [
        Source("hf", "Qwen/Qwen3-VL-30B-A3B-Instruct", COMMIT),
        Source("modelscope", "Qwen/Qwen3-VL-30B-A3B-Instruct", COMMIT),
        Source("s3", "bucket/some/folder", COMMIT),
        Source("s3", "bucket/some/folder", None),
        Source("file", "/models/a@b", None),
        Source("builtin", "tiny-qwen3-vl", None),
    ],
    ids=str,
)
def test_a_source_reads_as_it_is_written(source: Source) -> None:
    assert parse_source(str(source)) == source


REFUSED = {
    "hf://org/name": "no commit is named: .* hf://org/name@<commit>; `git ls-remote https://huggingface.co/org/name`",
    "hf://org/name@main": "'main' can move",
    f"hf://org/name@{COMMIT[:12]}": f"'{COMMIT[:12]}' can move",
    f"hf://org/name@{COMMIT.upper()}": "can move",
    "modelscope://org/name@master": "'master' can move: .*`git ls-remote https://www.modelscope.cn/org/name.git`",
    f"hf://name@{COMMIT}": "'name' names no repository; write hf://organisation/name@commit",
    f"hf://../name@{COMMIT}": "names no repository",
    f"hf://org/name/more@{COMMIT}": "names no repository",
    f"hf://org/name?token=x@{COMMIT}": "names no repository",
    "s3://bucket": "'bucket' names no folder of a bucket",
    "s3://bucket/../other": "names no folder of a bucket",
    "s3://bucket/folder@latest": "'latest' pins nothing",
    "ftp://host/folder": "should match pattern",
    "org/name": "should match pattern",
}


@pytest.mark.parametrize(("source", "message"), REFUSED.items(), ids=REFUSED.keys())
@pytest.mark.parametrize("field", ["source", "fallback"])
def test_a_source_that_is_not_pinned_is_refused_with_the_way_to_pin_it(field: str, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{field} = .*{message}"):
        load_config(ROOT / "configs" / "smoke.yaml", (f"model.{field}={source}",))
