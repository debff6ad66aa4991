"""Training, the exported folder and the engine take their pixel limits from the same two fields of the config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import AutoProcessor, Qwen3VLProcessor

from pipelines.artifacts import BaseSnapshot
from pipelines.config import Images
from serving.engine import options
from tests.training.parts import Configure
from training.chat.encoding import Encoder, load_processor
from training.weights.released import copy_companions

LIMITS = {"shortest_edge": 8192, "longest_edge": 32768}


def _export(base: Path, folder: Path) -> Qwen3VLProcessor:
    """The processor of an exported folder, as an engine loads it."""
    copy_companions(base, folder, 8192, 32768)
    shutil.copyfile(base / "config.json", folder / "config.json")
    return AutoProcessor.from_pretrained(folder)


def test_training_export_and_serving_have_the_same_limits(
    moe_base: BaseSnapshot, configure: Configure, tmp_path: Path
) -> None:
    config = configure("images.min_pixels=8192", "images.max_pixels=32768")
    images: Images = config.images
    flags = options(config.serving, images, config.hardware)
    served = json.loads(flags[flags.index("--mm-processor-kwargs") + 1])["size"]
    trained = load_processor(moe_base.path, images.min_pixels, images.max_pixels).image_processor.size
    exported = _export(moe_base.path, tmp_path).image_processor.size
    assert served == dict(trained) == dict(exported) == LIMITS


def test_images_at_both_limits_take_as_many_tokens_in_training_as_in_service(
    moe_base: BaseSnapshot, tmp_path: Path
) -> None:
    trained = Encoder(load_processor(moe_base.path, 8192, 32768))
    served = Encoder(_export(moe_base.path, tmp_path))
    sizes = [(32, 32), (64, 128), (65, 129), (181, 181), (182, 182), (1000, 30)]
    assert trained.visual_tokens(sizes) == served.visual_tokens(sizes)
    assert max(trained.visual_tokens(sizes)) <= 32768 // 1024
    assert min(trained.visual_tokens(sizes)) >= 8192 // 1024
