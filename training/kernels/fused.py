"""All kernels in Triton, under the names of `plain`."""

from training.kernels.fused_experts import gate_backward, gate_extend, gather_extend, gather_sum, unpack
from training.kernels.fused_rotation import norm_rotate, norm_rotate_backward

__all__ = [
    "gate_backward",
    "gate_extend",
    "gather_extend",
    "gather_sum",
    "norm_rotate",
    "norm_rotate_backward",
    "unpack",
]
