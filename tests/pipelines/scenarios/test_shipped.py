"""The packs that are shipped are whole, small, made as they say, and named in a config."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops
from pydantic import TypeAdapter

from pipelines.cli import main
from pipelines.config_file import load_config
from pipelines.errors import BadInput, ConfigError
from pipelines.scenarios.check import open_pack
from pipelines.scenarios.items import read_items
from pipelines.scenarios.pack import Pack
from pipelines.scenarios.planning import wanted_items
from pipelines.scenarios.scorers.registry import AnyScorer
from pipelines.scenarios.shelf import SHIPPED, find_pack, shipped_packs
from pipelines.settings import ROOT
from tests.pipelines.scenarios.packs import write_pack

PACKS = ("catalog", "digits")


def test_these_are_shipped() -> None:
    assert [folder.name for folder in shipped_packs()] == ["catalog", "digits", "medical"]


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_whole_and_has_the_items_that_its_margins_need(name: str) -> None:
    opened = open_pack(SHIPPED / name)
    assert opened.pack.name == name
    for slice_name, each in opened.pack.slices.items():
        n = sum(item.slice == slice_name for item in opened.items)
        assert n >= (wanted_items(each) or 0), slice_name


@pytest.mark.parametrize("name", [*PACKS, "medical"])
def test_a_shipped_pack_is_small_and_holds_no_other_files(name: str) -> None:
    files = [path for path in (SHIPPED / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 2**20
    used = set() if name == "medical" else set(open_pack(SHIPPED / name).pictures)
    assert {str(path.relative_to(SHIPPED / name)) for path in files if path.suffix == ".png"} == used


def test_the_cards_are_drawn_as_make_py_draws_them(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_catalog", SHIPPED / "catalog" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.make(tmp_path)
    assert (tmp_path / "items.jsonl").read_text() == (SHIPPED / "catalog" / "items.jsonl").read_text()
    drawn = sorted((tmp_path / "images").iterdir())
    assert len(drawn) == 132
    for card in drawn:
        with Image.open(card) as one, Image.open(SHIPPED / "catalog" / "images" / card.name) as other:
            assert ImageChops.difference(one, other).getbbox() is None, card.name


def test_medical_says_that_no_images_come_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "check", str(SHIPPED / "medical")]) == 0
    assert "medical is a template: no images come with it" in capsys.readouterr().out
    assert not (SHIPPED / "medical" / "items.jsonl").exists()


def test_the_list_names_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*PACKS, "medical", "template"))


def _config(*scenarios: object) -> tuple[str, ...]:
    names = ", ".join(f'"{name}"' for name in scenarios)
    return load_config(ROOT / "configs" / "smoke.yaml", (f"evaluate.scenarios=[{names}]",)).evaluate.scenarios


def test_a_config_names_shipped_packs_and_folders(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    assert _config("digits", "catalog", folder) == ("digits", "catalog", str(folder))


def test_a_name_means_the_shipped_pack_wherever_a_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pack(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert find_pack("digits") == SHIPPED / "digits"
    assert main(["scenario", "check", "digits"]) == 0  # a person means what is before them
    with pytest.raises(BadInput):
        find_pack("shop")


def test_what_the_readme_shows_is_a_pack() -> None:
    text = (ROOT / "README.md").read_text()
    [shown] = re.findall(r"```yaml\n# pack.yaml\n(.*?)```", text, re.DOTALL)
    pack = Pack.model_validate(yaml.safe_load(shown))
    [item] = re.findall(r'^`(\{"id": "0001", "slice": "price".*\})`', text, re.MULTILINE)
    found, problems = read_items(item.encode())
    assert problems == []
    assert pack.slices[found[1].slice].scorer.objection(found[1].expected_text) is None
    scorers = TypeAdapter(AnyScorer).json_schema()["discriminator"]["mapping"]
    assert set(re.findall(r"^\| `([a-z]+)` \| (?:text|a|an)\b", text, re.MULTILINE)) >= set(scorers)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("medical", "is a template: no images come with it(.|\n)*vlmops scenario import medical"),
        ("handwriting", "no scenario pack(.|\n)*catalog, digits, medical"),
        ("packs/shop", "String should match"),
        ("../shop", "String should match"),
    ],
)
def test_a_name_that_cannot_be_asked_is_refused_before_anything_starts(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluate.scenarios(.|\n)*{why}"):
        _config(name)


def test_a_broken_pack_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_pack(tmp_path / "shop")
    (tmp_path / "shop" / "pack.yaml").write_text("name: shop\n")
    with pytest.raises(ConfigError, match=r"evaluate.scenarios: (.|\n)*pack.yaml:1: description: Field required"):
        _config(tmp_path / "shop")


def test_a_broken_item_is_refused_before_anything_starts_and_no_image_is_opened(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "shop")
    for image in (folder / "images").iterdir():
        image.write_bytes(b"opened by the evaluation")
    assert _config(folder) == (str(folder),)
    with (folder / "items.jsonl").open("a") as items:
        items.write("{}\n")
    with pytest.raises(ConfigError, match=r"evaluate.scenarios: (.|\n)*items.jsonl:4: id: Field required"):
        _config(folder)


def test_two_packs_of_one_name_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two packs are called shop; rename one"):
        _config(write_pack(tmp_path / "one"), write_pack(tmp_path / "two"))
