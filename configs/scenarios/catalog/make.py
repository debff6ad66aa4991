"""Makes the pack `catalog`: a card for each product of `catalogue.csv`, and four questions about each.

    .venv/bin/python configs/scenarios/catalog/make.py FOLDER

writes `items.jsonl` and `images/` into FOLDER. The font is the one that Pillow brings, so that every machine draws the
same cards.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SIZE = (384, 256)
INK, PAPER, FAINT = (30, 30, 36), (250, 250, 247), (140, 140, 146)
COLOURS = {
    "black": (24, 24, 24),
    "white": (255, 255, 255),
    "red": (200, 30, 40),
    "blue": (30, 80, 190),
    "green": (30, 140, 60),
    "yellow": (240, 200, 30),
    "grey": (128, 128, 128),
    "brown": (110, 70, 40),
}
Point = tuple[int, int]
OUTLINES: dict[str, list[Point]] = {
    "Shoes": [(30, 120), (70, 120), (85, 145), (120, 160), (120, 180), (30, 180)],
    "Tops": [(50, 90), (100, 90), (125, 115), (110, 130), (100, 120), (100, 190), (50, 190), (50, 120), (40, 130),
             (25, 115)],
    "Audio": [(45, 180), (35, 140), (45, 105), (75, 90), (105, 105), (115, 140), (105, 180), (90, 180), (98, 140),
              (75, 108), (52, 140), (60, 180)],
    "Computers": [(25, 95), (125, 95), (125, 160), (82, 160), (82, 180), (100, 188), (50, 188), (68, 180), (68, 160),
                  (25, 160)],
    "Kitchen": [(40, 110), (95, 110), (130, 100), (130, 112), (100, 130), (95, 180), (40, 180)],
    "Lighting": [(55, 90), (95, 90), (115, 130), (80, 130), (80, 180), (100, 190), (50, 190), (70, 180), (70, 130),
                 (35, 130)],
    "Furniture": [(40, 85), (52, 85), (52, 135), (110, 135), (110, 190), (98, 190), (98, 150), (52, 150), (52, 190),
                  (40, 190)],
}  # fmt: skip
"""What stands for the products of a group, in pixels of the card."""


def make(folder: Path) -> None:
    """Write items and images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    with (HERE / "catalogue.csv").open(encoding="utf-8", newline="") as file:
        for product in csv.DictReader(file):
            name = f"images/{product['id']}.png"
            draw_card(product).save(folder / name, optimize=True)
            for slice_, expected in answers(product).items():
                item = {"id": f"{product['id']}-{slice_}", "slice": slice_, "images": [name], "expected": expected}
                lines.append(json.dumps(item) + "\n")
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")


def answers(product: dict[str, str]) -> dict[str, object]:
    """What is expected of each slice."""
    attributes = {
        "brand": product["brand"],
        "title": product["title"],
        "colour": product["colour"],
        "size": product["size"],
        "price": {"amount": float(product["price"]), "currency": product["currency"]},
    }
    return {
        "attributes": attributes,
        "category": product["category"],
        "title": product["title"],
        "price": product["price"],
    }


def draw_card(product: dict[str, str]) -> Image.Image:
    """A card of 384 x 256 pixels."""
    card = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, SIZE[0] - 1, SIZE[1] - 1), outline=FAINT)
    group = product["category"].split(" > ")[1]
    pen.polygon(OUTLINES[group], fill=COLOURS[product["colour"]], outline=INK)
    pen.text((20, 16), product["brand"].upper(), INK, _font(18))
    pen.text((20, 42), product["title"], INK, _font(22))
    pen.text((160, 96), f"Size  {product['size']}", INK, _font(16))
    pen.text((160, 120), f"No.  {product['id']}", FAINT, _font(14))
    price = f"{product['currency']} {float(product['price']):,.2f}"
    pen.text((160, 160), price, INK, _font(28))
    if product["was"]:
        old = f"{product['currency']} {float(product['was']):,.2f}"
        pen.text((160, 200), old, FAINT, _font(16))
        pen.line((158, 210, 162 + round(pen.textlength(old, _font(16))), 210), FAINT, 2)
    return card.point([36 * round(value / 36) for value in range(256)] * 3)  # few shades: half the bytes of the file


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
