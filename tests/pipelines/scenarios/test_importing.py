"""A template, a table and images become a pack, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.errors import BadInput
from pipelines.scenarios.check import open_pack
from pipelines.scenarios.importing import import_table
from pipelines.scenarios.shelf import SHIPPED
from tests.pipelines.scenarios.packs import write_pack

MEDICAL = SHIPPED / "medical"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three images, one below a folder."""
    folder = tmp_path / "scans"
    (folder / "left").mkdir(parents=True)
    for number, name in enumerate(("one.png", "two.jpg", "left/one.png")):
        Image.new("L", (40, 40), 80 * number).save(folder / name)
    return folder


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder / "labels.csv"


def test_the_command_makes_a_pack(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(tmp_path, "image,label\none.png,normal\ntwo.jpg,Finding\nleft/one.png|one.png,cannot tell\n")
    out = tmp_path / "pack"
    assert main(["scenario", "import", "medical", str(rows), "--images", str(scans), "--out", str(out)]) == 0
    assert "written" in capsys.readouterr().out
    opened = open_pack(out)
    assert not opened.pack.template
    assert [item.expected_text for item in opened.items] == ["normal", "Finding", "cannot tell"]
    assert [len(item.images) for item in opened.items] == [1, 1, 2]
    assert (out / opened.items[1].images[0]).read_bytes() == (scans / "two.jpg").read_bytes()
    assert {limit.metric for limit in opened.scenario.limits} >= {"medical/finding/sensitivity/abnormal"}
    assert main(["scenario", "check", str(out)]) == 0


def test_ids_prompts_and_slices_may_be_told(scans: Path, tmp_path: Path) -> None:
    template = write_pack(tmp_path / "template")
    rows = table(
        tmp_path,
        "\ufeffid,slice,image,prompt,label\nx1,colour,one.png,,red\nx2,colour,two.jpg,,blue\n"
        'x3,price,one.png,"Sum,\nof all?",3.5\n',
    )
    import_table(template, rows, scans, tmp_path / "out")
    items = open_pack(tmp_path / "out").items
    assert [(item.id, item.slice, item.prompt) for item in items] == [
        ("x1", "colour", None),
        ("x2", "colour", None),
        ("x3", "price", "Sum,\nof all?"),
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("image,label\nnone.png,normal\none.png,cyst\n", r"labels.csv:2: image 'none.png' is not there"),
        ("image,label\none.png,normal\ntwo.jpg,cyst\n", r"labels.csv:3: item-00002: expected 'cyst' cannot be scored"),
        ("image,label\n../scans/one.png,normal\n", "labels.csv:2: .*outside"),
        ("image,label\n,normal\n", "labels.csv:2: image '' is not named"),
        ("id,image,label\n../../x,one.png,normal\n", "labels.csv:2: id: String should match"),
        ("image,label\n", "slice finding has no item"),
        (
            "image,label\none.png,normal, maybe abnormal\ntwo.jpg,normal\n",
            "labels.csv:2: has more cells than the header",
        ),
        ("image,label\none.png,normal\ntwo.jpg\n", "labels.csv:3: has no cell for label"),
        ("image,label\none.png,\n", r"labels.csv:2: item-00001: expected '' cannot be scored"),
        ("image,label,image\none.png,normal,two.jpg\n", "has two columns image; several images"),
        ('image,label\none.png,"normal\ntwo.jpg,normal\n', "is no CSV in UTF-8: unexpected end of data"),
        ("image\none.png\n", "has no column label; it has image"),
        ("image,label,age\none.png,normal,7\n", "column age says nothing to us"),
        ("", "has no column image, label"),
    ],
)
def test_what_is_wrong_is_told_by_the_table_s_line_and_nothing_is_written(
    text: str, why: str, scans: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*")) | {tmp_path / "labels.csv"}
    with pytest.raises(BadInput, match=why):
        import_table(MEDICAL, table(tmp_path, text), scans, tmp_path / "out")
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_that_is_there_is_not_written_over(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is there already"):
        import_table(MEDICAL, table(tmp_path, "image,label\none.png,normal\n"), scans, scans)


def test_a_table_that_is_not_there(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none.csv cannot be read: No such file"):
        import_table(MEDICAL, tmp_path / "none.csv", scans, tmp_path / "out")
