"""Whether an adapter belongs to a base: digests of folders, with and without a manifest of ours."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.errors import ExportRejected
from pipelines.system.manifest import NAME, manifest_digest, read_manifest, write_manifest
from training.merge import LoraReader
from training.weights.checkpoint import Checkpoint, Update
from training.weights.delta import relative_norms

log = logging.getLogger(__name__)

HEAD = "lm_head.weight"


def recorded_base(adapter: Path) -> str | None:
    """Digest of the base that an adapter was trained on; None where nothing records it, as with PEFT's own."""
    base = read_manifest(adapter).get("base") if (adapter / NAME).is_file() else None
    return str(base) if base else None


def require_same_base(base: Path, adapter: Path) -> str | None:
    """Hold a base against what the adapter records of its own.

    Args:
        base: Without a manifest, every file of it is hashed.
        adapter: One that records nothing is let pass, and that is said.

    Returns:
        The base's digest; None where it was neither recorded nor needed.

    Raises:
        ExportRejected: It is another one.
    """
    wanted, known = recorded_base(adapter), bool((base / NAME).is_file())
    if wanted is None:
        log.warning("%s records no base: nothing tells whether it was trained on %s", adapter, base)
        return manifest_digest(base) if known else None
    if not known:
        log.info("hashing %s, to hold it against the base that the adapter records", base)
    names = {manifest_digest(base), _listed_digest(base)} if known else {hashed(base)}
    if wanted not in names:
        raise ExportRejected(
            f"{adapter} was trained on base {wanted[:12]}, and {base} is {min(names)[:12]}; name the base it was "
            f"trained on, or train on this one first"
        )
    return wanted


def open_update(adapter: Path, digest: str, checkpoint: Checkpoint) -> Update:
    """An adapter, checked against the checkpoint that it is for.

    Raises:
        ExportRejected: It is broken, of a flavour that cannot be merged, updates what the base does not have, or by
            more or less than is sane.
    """
    lora = LoraReader(adapter, checkpoint.experts)
    if unknown := sorted(set(lora.targets) - {one.target for one in checkpoint.planned}):
        raise ExportRejected(f"{adapter}: updates of {', '.join(unknown[:4])}, which the base does not have")
    _require_fitting(lora, checkpoint)
    return Update(lora, digest, relative_norms(checkpoint, lora))


def _require_fitting(lora: LoraReader, checkpoint: Checkpoint) -> None:
    """Stacks of experts were told by their shapes already."""
    for one in checkpoint.planned:
        if one.expert is None and one.target in lora.targets and lora.shape(one.target) != one.output.shape:
            raise ExportRejected(
                f"{lora.folder}: the update of {one.target} is {list(lora.shape(one.target))}, and the base has "
                f"{list(one.output.shape)}; name the base that it was trained on"
            )
    if HEAD in lora.targets and checkpoint.tied:
        raise ExportRejected(
            f"{lora.folder}: updates {HEAD}, which the base ties to its embeddings, so that no engine would see it; "
            f"train without it"
        )


def hashed(folder: Path) -> str:
    """Names the bytes of a folder as `download` does for one that is used where it lies: about a minute for 60 GB."""
    with TemporaryDirectory() as home:
        return write_manifest(folder, into=Path(home))


def digest_or_hash(folder: Path) -> str:
    """The manifest's digest, or of a folder without one, the same as if it were made now."""
    return manifest_digest(folder) if (folder / NAME).is_file() else hashed(folder)


def _listed_digest(folder: Path) -> str:
    """What `hashed` would give, by the hashes that the folder's own manifest lists."""
    listed = read_manifest(folder)["files"]
    assert isinstance(listed, dict)
    files = {name: {key: facts[key] for key in ("size", "sha256")} for name, facts in listed.items()}
    return hashlib.sha256(json.dumps({"files": files}, indent=1, sort_keys=True).encode()).hexdigest()
