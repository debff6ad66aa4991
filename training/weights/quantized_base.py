"""The base in the scheme that is served, for comparison: the export without an adapter, kept once for all runs."""

from __future__ import annotations

import logging
from pathlib import Path

from training.sources.cache import is_whole, locked
from training.weights.stream import Checkpoint, finish, write_weights

log = logging.getLogger(__name__)

FOLDER = "bases-exported"
"""Of the cache."""


def quantized_base(checkpoint: Checkpoint, base_digest: str, scheme: str, max_bytes: float, cache: Path) -> Path:
    """The folder of the exported base; written if it is not there or not whole.

    Its image processor keeps the published limits, so that it depends on no config: engines get the limits by a flag.

    Args:
        checkpoint: The base.
        base_digest: Names it.
        scheme: Not bf16, as which the base itself is served.
        max_bytes: Size of one file, if it is written now.
        cache: Of this machine.

    Raises:
        ExportRejected: What was written is not what should have been.
        MachineUnfit: The disk is too small.
    """
    folder = cache / FOLDER / f"{base_digest[:16]}-{scheme}"
    with locked(folder):
        if is_whole(folder):
            log.info("the base in %s is in %s already", scheme, folder)
            return folder
        log.info("writing the base in %s to %s, once for all runs on this machine", scheme, folder)
        write_weights(folder.parent, {folder.name: scheme}, checkpoint, None, max_bytes)
        finish(folder, scheme, checkpoint, None, {"base": base_digest})
    return folder
