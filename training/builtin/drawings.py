"""The synthetic images: printed digits, plain colours and shapes, every one a function of its seed.

The built-in base models learn these and nothing else, so that reading handwriting is a new task for them, and
forgetting these is something a gate can see.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 64
"""Width and height of every built-in image, in pixels."""

DIGIT_QUESTION = "Which digit is written here?"
QUESTIONS = {
    "printed": DIGIT_QUESTION,
    "colours": "What colour is the picture?",
    "shapes": "Which shape is drawn here?",
}
COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "yellow": (230, 220, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
CANVAS = 96
"""Digits are drawn on a larger canvas, so that the warp has paper around them."""


@dataclass(frozen=True)
class Drawing:
    """A picture with a question and its right answer."""

    slice: str
    image: Image.Image
    question: str
    answer: str


def digit_answer(digit: int) -> str:
    """How a digit is to be answered, whoever wrote it."""
    return f"The digit is {digit}."


def answers() -> tuple[str, ...]:
    """Every answer there is."""
    return (
        *(digit_answer(d) for d in range(10)),
        *(f"The colour is {c}." for c in COLOURS),
        *(f"The shape is {s}." for s in SHAPES),
    )


def draw_many(counts: dict[str, int], seed: int) -> list[Drawing]:
    """So many drawings of each slice; every answer of a slice comes equally often, give or take one."""
    random = np.random.default_rng(seed)
    return [_draw(name, index, random) for name, count in counts.items() for index in range(count)]


def _draw(name: str, index: int, random: np.random.Generator) -> Drawing:
    if name == "printed":
        digit = index % 10
        return Drawing(name, _printed(digit, random), QUESTIONS[name], digit_answer(digit))
    if name == "colours":
        colour = list(COLOURS)[index % len(COLOURS)]
        return Drawing(name, _colour(COLOURS[colour], random), QUESTIONS[name], f"The colour is {colour}.")
    shape = SHAPES[index % len(SHAPES)]
    return Drawing(name, _shape(shape, random), QUESTIONS[name], f"The shape is {shape}.")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own embedded font: no system fonts needed. It decodes the font on every call, hence the cache.
    return ImageFont.load_default(size=size)


def _printed(digit: int, random: np.random.Generator) -> Image.Image:
    """Dark ink on light paper, like a scan: the nearest that printing comes to handwriting."""
    image = Image.new("L", (CANVAS, CANVAS), 0)
    ImageDraw.Draw(image).text(
        (CANVAS // 2, CANVAS // 2),
        str(digit),
        fill=255,
        font=_font(int(random.integers(56, 80))),
        anchor="mm",
        stroke_width=int(random.integers(0, 4)),
    )
    image = image.transform((CANVAS, CANVAS), Image.Transform.AFFINE, _warp(random), Image.Resampling.BILINEAR)
    image = image.crop((14, 14, 82, 82)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(0, 2.5)))
    ink, paper = random.uniform(0, 0.3), random.uniform(0.75, 1)
    pixels = paper + (ink - paper) * (np.asarray(image, np.float32) / 255)
    pixels = pixels + random.normal(0, random.uniform(0, 0.06), pixels.shape)
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


def _warp(random: np.random.Generator) -> tuple[float, ...]:
    """An affine map of output to input pixels: up to 12 degrees, some shear, some scale, some shift."""
    angle, shear = math.radians(random.uniform(-12, 12)), random.uniform(-0.15, 0.15)
    x, y = random.uniform(0.8, 1.25), random.uniform(0.9, 1.15)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * x, (shear - sin) * x], [sin * y, cos * y]])
    centre = np.array([CANVAS / 2, CANVAS / 2])
    shift = centre - matrix @ centre + random.uniform(-4, 4, 2)
    return (*matrix[0], shift[0], *matrix[1], shift[1])


def _colour(rgb: tuple[int, int, int], random: np.random.Generator) -> Image.Image:
    tone = np.array(rgb) + random.integers(-12, 13, 3)
    # A grain of one or two levels: no two pictures are the same, so none of the test is in the training data.
    grain = random.integers(-2, 3, (SIZE, SIZE, 3))
    return Image.fromarray((tone + grain).clip(0, 255).astype(np.uint8))


def _shape(shape: str, random: np.random.Generator) -> Image.Image:
    ink = tuple(int(v) for v in random.integers(0, 90, 3))
    paper = tuple(int(v) for v in random.integers(150, 256, 3))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    (x, y), r = random.uniform(26, 38, 2), random.uniform(14, 24)
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=ink)
    elif shape == "square":
        draw.rectangle(box, fill=ink)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=ink)
    else:
        draw.line((x - r, y, x + r, y), fill=ink, width=8)
        draw.line((x, y - r, x, y + r), fill=ink, width=8)
    return image
