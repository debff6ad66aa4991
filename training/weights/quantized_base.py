"""The base in the scheme that is served, for comparison: the export without an adapter, kept once for all runs."""

from __future__ import annotations

import logging
from pathlib import Path

from pipelines.schemes import Scheme
from training.sources.cache import is_whole, locked
from training.weights.checkpoint import Checkpoint
from training.weights.making import make
from training.weights.stream import Pass

log = logging.getLogger(__name__)

FOLDER = "bases-exported"
"""Of the cache."""


def quantized_base(checkpoint: Checkpoint, scheme: Scheme, max_bytes: float, cache: Path, device: str = "cpu") -> Path:
    """The folder of the exported base; written if it is not there or not whole.

    Its image processor keeps the published limits, so that it depends on no config: engines get the limits by a flag.

    Args:
        checkpoint: The base.
        scheme: Not bf16, as which the base itself is served.
        max_bytes: Size of one file, if it is written now.
        cache: Of this machine.
        device: That does the arithmetic.

    Raises:
        ExportRejected: What was written is not what should have been.
        MachineUnfit: The disk is too small.
    """
    groups = f"-g{scheme.group}" if scheme.group else ""
    folder = cache / FOLDER / f"{checkpoint.digest[:16]}-{scheme.name}{groups}"
    with locked(folder):
        if is_whole(folder):
            log.info("the base in %s is in %s already", scheme.name, folder)
            return folder
        log.info("writing the base in %s to %s, once for all runs on this machine", scheme.name, folder)
        one_pass = Pass(checkpoint, None, {folder.name: scheme}, max_bytes, device)
        make(one_pass, folder.parent, None, {"base": checkpoint.digest}).seal()
    return folder
