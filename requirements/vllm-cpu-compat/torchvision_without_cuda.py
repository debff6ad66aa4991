"""Make a torchvision that was linked to CUDA importable beside a CPU-only torch.

Such a torchvision fails with "operator torchvision::nms does not exist", because its compiled library cannot be loaded.
Its transforms are pure torch and are all that Qwen3-VL needs, so declaring the two operators is enough. With a
torchvision that was built for the CPU nothing is done: it has the operators.
"""

import importlib.abc
import sys
from importlib.machinery import PathFinder


class _DeclareOperators(importlib.abc.MetaPathFinder):
    """Steps in once, at the first import of torchvision, and leaves the import itself to the usual finders."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is not None and _linked_to_cuda(spec):
            _declare()
        return spec


def install():
    """Watch for the import of torchvision; called by the .pth file at interpreter start, in a venv twice."""
    if not any(isinstance(finder, _DeclareOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())


def _linked_to_cuda(spec):
    import re
    from pathlib import Path

    return re.search(r"\+cu\d", Path(spec.origin).with_name("version.py").read_text()) is not None


def _declare():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch._declared_torchvision_operators = library  # dropped operators are undeclared
