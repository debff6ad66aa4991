"""No listed path gets out of the folder, and of what is published only a model is taken."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import SourceRefused
from training.sources.published import PublishedFile, fingerprint, needed, refuse_path

PATHS = st.lists(st.sampled_from(["a", "..", ".", "", "b.json", "\\", "c\\..", "\n", "~"]), min_size=1).map("/".join)


@given(PATHS | st.text(min_size=1))
def test_a_path_that_is_not_refused_stays_below_the_folder(path: str) -> None:
    with suppress(SourceRefused):
        refuse_path(path, "hf://x")
        target = Path("/cache/model") / path
        assert ".." not in target.parts
        assert Path("/cache/model") in target.parents


@pytest.mark.parametrize("path", ["../a.json", "/a.json", "a/../../b.json", "a\\b.json", "a//b.json", "./a", "a\n", ""])
def test_a_path_that_leaves_the_folder_is_named(path: str) -> None:
    with pytest.raises(SourceRefused, match=re.escape(repr(path))):
        refuse_path(path, "hf://x")


@pytest.mark.parametrize("path", ["model.safetensors", "a/b.json", "..hidden/x.json", "a..b.txt", "vocab \u4e2d.txt"])
def test_an_ordinary_path_is_not_refused(path: str) -> None:
    refuse_path(path, "hf://x")


def test_what_a_model_needs() -> None:
    wanted = [
        "LICENSE",
        "README.md",
        "config.json",
        "extra/template.jinja",
        "merges.txt",
        "model.safetensors",
        "t.model",
    ]
    others = ["manifest.json", ".git/config.json", "original/model.safetensors", "x.bin", "x.py", "x.gguf", "x.png"]
    assert needed([*others, *wanted], "hf://x") == wanted


def test_the_fingerprint_names_files_and_hashes_in_any_order() -> None:
    one, other = PublishedFile("a", 1, "md5", "00"), PublishedFile("b", 1, "md5", "00")
    assert fingerprint([one, other]) == fingerprint([other, one])
    assert len({fingerprint(f) for f in ([one], [other], [PublishedFile("a", 1, "md5", "01")], [])}) == 4
