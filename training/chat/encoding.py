"""Rows as the model takes them: tokens, pixels and exact answer masks. Never cut, and counted per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLProcessor

IGNORE = -100
"""Label of tokens that are not learned."""

Messages = Sequence[dict[str, Any]]


class Unencodable(ValueError):
    """A row that the chat template or the vocabulary cannot express."""


@dataclass(frozen=True)
class Encoded:
    """One row."""

    input_ids: torch.Tensor
    """[tokens], int64."""

    labels: torch.Tensor
    """[tokens], int64: the token itself in answers, their end token included; IGNORE elsewhere."""

    image_mask: torch.Tensor
    """[tokens], int64: 1 where a visual token stands."""

    pixel_values: torch.Tensor | None
    """[patches, values per patch], float32; None without images."""

    image_grid_thw: torch.Tensor | None
    """[images, 3], int64: patches in time, height, width."""


def load_processor(base: Path, min_pixels: int, max_pixels: int) -> Qwen3VLProcessor:
    """The base's own processor, with the config's pixel limits instead of its own."""
    processor = AutoProcessor.from_pretrained(base)
    processor.image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return processor


class Encoder:
    """Turns chat messages and their images into tensors with one model's processor."""

    def __init__(self, processor: Qwen3VLProcessor) -> None:
        """Use this processor."""
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.special = frozenset(self.tokenizer.all_special_tokens) | set(self.tokenizer.get_added_vocab())

    def encode(self, messages: Messages, images: Sequence[Image.Image]) -> Encoded:
        """Encode one row.

        Raises:
            Unencodable: The template does not put the answers where they can be told apart.
        """
        segments = self.segments(messages)
        if not images:
            return self._tensors(segments, [], None, None)
        vision = self.processor.image_processor(images=list(images), return_tensors="pt")
        grid = vision["image_grid_thw"]
        counts = (grid.prod(-1) // self.processor.image_processor.merge_size**2).tolist()
        return self._tensors(segments, counts, vision["pixel_values"], grid)

    def outline(self, messages: Messages, sizes: Sequence[tuple[int, int]]) -> Encoded:
        """A row without its pixels, from the sizes (width, height) of its images alone.

        Raises:
            Unencodable: As `encode`, or an image is too long and narrow for the image processor.
        """
        return self._tensors(self.segments(messages), self.visual_tokens(sizes), None, None)

    def count(self, messages: Messages, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """All tokens and visual tokens of a row, from the sizes (width, height) of its images alone."""
        encoded = self.outline(messages, sizes)
        return len(encoded.input_ids), int(encoded.image_mask.sum())

    def visual_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """What images of these sizes (width, height) take, each."""
        images = self.processor.image_processor
        area = images.merge_size**2
        return [int(images.get_number_of_image_patches(height, width)) // area for width, height in sizes]

    def segments(self, messages: Messages) -> list[tuple[str, bool]]:
        """The row as text, cut at the answers; True marks an answer with its end token.

        Prompt and answer are tokenised apart, because that is how they meet when the model is served.

        Raises:
            Unencodable: The template does not render a conversation as a beginning of its continuation.
        """
        segments: list[tuple[str, bool]] = []
        done, rendered = 0, ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:i], ask=True)
            whole = self._render(messages[: i + 1], ask=False)
            if not (whole.startswith(prompt) and whole[:done] == rendered[:done]):
                raise Unencodable("the chat template rewrites earlier turns; answers cannot be told apart")
            end = whole.rindex(self.tokenizer.eos_token) + len(self.tokenizer.eos_token)
            segments += [(whole[done : len(prompt)], False), (whole[len(prompt) : end], True)]
            done, rendered = end, whole
        return segments

    def _render(self, messages: Messages, *, ask: bool) -> str:
        text: str = self.processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return text

    def _tensors(
        self,
        segments: list[tuple[str, bool]],
        counts: list[int],
        pixels: torch.Tensor | None,
        grid: torch.Tensor | None,
    ) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        remaining = iter(counts)
        for text, learned in segments:
            tokens = self.tokenizer(self._expand(text, remaining), add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += tokens if learned else [IGNORE] * len(tokens)
        input_ids = torch.tensor(ids)
        mask = (input_ids == self.processor.image_token_id).long()
        if int(mask.sum()) != sum(counts):
            raise Unencodable(f"{int(mask.sum())} visual tokens in the text, {sum(counts)} from the images")
        return Encoded(input_ids, torch.tensor(labels), mask, pixels, grid)

    def _expand(self, text: str, counts: Any) -> str:
        """Every image mark of the template becomes as many as the image has visual tokens."""
        mark = self.processor.image_token
        first, *rest = text.split(mark)
        return first + "".join(mark * next(counts, 1) + part for part in rest)


def collate(rows: Sequence[Encoded], positions: Sequence[torch.Tensor], pad: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right to the longest and stack them.

    Attention is causal and padding has no labels, so no attention mask is needed.

    Args:
        rows: At least one.
        positions: [3, tokens] each: the row's positions in time, height and width.
        pad: The padding token.
    """
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad_sequence([row.input_ids for row in rows], batch_first=True, padding_value=pad),
        "labels": pad_sequence([row.labels for row in rows], batch_first=True, padding_value=IGNORE),
        "position_ids": pad_sequence([p.T for p in positions], batch_first=True).permute(2, 0, 1),
    }
    pixels = [row.pixel_values for row in rows if row.pixel_values is not None]
    grids = [row.image_grid_thw for row in rows if row.image_grid_thw is not None]
    if pixels:
        batch |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)}
    return batch
