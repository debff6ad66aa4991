"""A small model as published: two shards of noise, their index, a config; and the places that publish it."""

from __future__ import annotations

import hashlib
import json
import random

from pipelines.model_source import Source
from tests.training.sources.site import Site

COMMIT = "c0ffee" + "0" * 34
NAME = "acme/tiny"
SHARD = "model-00002-of-00002.safetensors"
HF = Source("hf", NAME, COMMIT)

Files = dict[str, bytes]


def model() -> Files:
    """Files by path. Noise does for weights: what a download checks is bytes."""
    noise = random.Random(3).randbytes
    shards = {"model-00001-of-00002.safetensors": noise(50_000), SHARD: noise(200_000)}
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(shards)}}
    config = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "text_config": {"num_experts": 4}}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "chat_template.jinja": b"{{ messages }}",
        "merges.txt": b"",
        "README.md": b"A model.",
        **shards,
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HubSite:
    """A model on a hub: its listing and its files."""

    def __init__(self, site: Site, files: Files) -> None:
        self.site, self.files = site, files
        self.listing = f"/api/models/{NAME}/revision/{COMMIT}"
        siblings = [self._sibling(path, content) for path, content in files.items()]
        self.publish({"sha": COMMIT, "siblings": siblings})
        site.bodies |= {self.path(path): content for path, content in files.items()}

    def publish(self, listing: object) -> None:
        self.site.bodies[self.listing] = json.dumps(listing).encode()

    @staticmethod
    def path(file: str) -> str:
        return f"/{NAME}/resolve/{COMMIT}/{file}"

    @staticmethod
    def _sibling(path: str, content: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        plain = {"rfilename": path, "size": len(content), "blobId": blob}
        if not path.endswith(".safetensors"):
            return plain
        return {**plain, "blobId": "0" * 40, "lfs": {"sha256": sha256(content), "size": len(content), "pointerSize": 9}}
