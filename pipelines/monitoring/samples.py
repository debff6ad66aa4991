"""What is kept of a request that was sampled: numbers. No image, no text, no name of a key.

The same is taken of the rows that the model was trained on, by the same functions, so that the two compare.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipelines.artifact import Artifact

if TYPE_CHECKING:
    import pyarrow as pa

FEATURES = ("megapixels", "aspect", "brightness", "prompt_tokens", "answer_tokens", "schema_valid", "refused")
"""What is compared with the training set. Those of images are of each image."""

MAX_PIXELS = 40_000_000
"""Of an image whose brightness is taken; the engine refuses larger ones unless told otherwise."""

DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, struct.error, zlib.error)
"""What Pillow says of damaged files."""

EXPRESSIONS = frozenset({"pattern", "patternProperties"})
"""Of JSON Schema, what Python would match by going back and forth, with no other thread running meanwhile."""

REFERENCES = 10_000
"""Of a schema that are followed for one answer."""


class ImageFacts(Artifact):
    """What is known of one image."""

    megapixels: float
    aspect: float
    """Width / height."""

    brightness: float | None
    """Mean luma, 0 black to 1 white. None: too large to decode for this, or damaged."""


class Sample(Artifact):
    """What is known of one request and its answer."""

    time: float
    """Seconds since 1970."""

    images: tuple[ImageFacts, ...] = ()
    prompt_tokens: int | None = None
    """As the engine counts them, visual ones included. None: it did not say."""

    answer_tokens: int | None = None
    schema_valid: bool | None = None
    """Whether the answer is what the schema that was asked for says. None: no schema was, or none that may be checked
    here."""

    refused: bool | None = None
    """Whether the answer begins as a refusal does. None: there was no text."""


def image_facts(content: bytes) -> ImageFacts | None:
    """What is known of an image file; None if it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            pixels = width * height
            brightness = _brightness(image) if 0 < pixels <= MAX_PIXELS else None
    except (*DAMAGED, Image.DecompressionBombError):
        return None
    if not pixels:
        return None
    return ImageFacts(megapixels=pixels / 1e6, aspect=width / height, brightness=brightness)


def _brightness(image: Any) -> float | None:
    """Mean luma; a JPEG is decoded at an eighth of its size, which has the same mean."""
    from PIL import ImageStat

    try:
        image.draft("L", (64, 64))
        return float(ImageStat.Stat(image.convert("L")).mean[0]) / 255
    except DAMAGED:
        return None


def refused(text: str, beginnings: Sequence[str]) -> bool:
    """Whether an answer begins as a refusal does."""
    start = text.lstrip().replace("’", "'").lower()  # noqa: RUF001  as models write it
    return any(start.startswith(beginning) for beginning in beginnings)


def schema_valid(text: str, schema: bool | Mapping[str, Any]) -> bool | None:
    """Whether an answer is JSON as its schema says; not, if the schema itself is none.

    A client wrote the schema, and the engine's own process asks. None, which is nothing said, where it has regular
    expressions (one can hold up every request for hours), refers to what lies elsewhere (nothing is fetched), or
    refers to itself without end.
    """
    import json

    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return False
    try:
        if not EXPRESSIONS.isdisjoint(_names(schema)):
            return None
        jsonschema.validate(answer, schema, _bounded(), registry=Registry())
    except (Unresolvable, RecursionError, ArithmeticError):  # the last: a number too large to be divided
        return None
    except (jsonschema.ValidationError, jsonschema.SchemaError):
        return False
    return True


def _names(schema: object) -> Iterator[str]:
    """Every name in a schema, at any depth."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            yield from part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _bounded() -> Any:
    """JSON Schema 2020-12, where references are followed so often and no more: a short schema may ask for 2^50."""
    from jsonschema.validators import Draft202012Validator, extend

    followed = itertools.count()

    def limited(rule: Callable[..., Any], *arguments: Any) -> Any:
        if next(followed) >= REFERENCES:
            raise RecursionError
        return rule(*arguments)

    known = Draft202012Validator.VALIDATORS
    rules = {name: partial(limited, known[name]) for name in ("$ref", "$dynamicRef")}
    return extend(Draft202012Validator, rules)  # type: ignore[no-untyped-call]  # jsonschema's


def values(samples: Iterable[Sample], feature: str) -> list[float]:
    """One feature of the samples that have it."""
    if feature in ImageFacts.model_fields:
        found = [dict(image)[feature] for sample in samples for image in sample.images]
    else:
        found = [dict(sample)[feature] for sample in samples]
    return [float(value) for value in found if value is not None]


def having(samples: Sequence[Sample], feature: str, found: Sequence[float]) -> int:
    """How many of the samples have a feature, of which `found` are the values: a sample may have several images."""
    if feature not in ImageFacts.model_fields:
        return len(found)
    return min(len(found), sum(bool(sample.images) for sample in samples))


def read_sample(row: object) -> Sample | None:
    """A row of a file; None if it is of another version of vlmops."""
    try:
        return Sample.model_validate(row)
    except ValidationError:
        return None


def schema() -> pa.Schema:
    """The columns of the Parquet files."""
    import pyarrow as pa

    image = pa.struct([("megapixels", pa.float64()), ("aspect", pa.float64()), ("brightness", pa.float64())])
    return pa.schema(
        [
            pa.field("time", pa.float64(), nullable=False),
            pa.field("images", pa.list_(image), nullable=False),
            pa.field("prompt_tokens", pa.int64()),
            pa.field("answer_tokens", pa.int64()),
            pa.field("schema_valid", pa.bool_()),
            pa.field("refused", pa.bool_()),
        ]
    )
