"""The optimizer of a GPU: AdamW with 8-bit states in memory that may leave the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional as bnb


class PagedAdamW8bit(bitsandbytes.optim.PagedAdamW8bit):
    """bitsandbytes' own (Dettmers et al. 2022), without a wait for the GPU at every tensor.

    States are brought to the card once, when they are made. If it ever runs short of memory and they leave, the driver
    brings back what a step touches.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no closure, no loss
        """One step for every parameter with a gradient; waits once, at the end, as paged states need it."""
        assert closure is None
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for i, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, i)
                    self.prefetch_state(parameter)
                self.update_step(group, parameter, number, i)
        torch.cuda.synchronize()

    def update_step(self, group: dict[str, Any], p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
        """One step for one parameter; small ones have states in 32 bits."""
        state = self.state[p]
        if state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None  # `step` passes over such parameters
        state["step"] += 1
        beta1, beta2 = group["betas"]
        bnb.optimizer_update_8bit_blockwise(
            "adam", p.grad.contiguous(), p, state["state1"], state["state2"], beta1, beta2, 0.0, 0.0, group["eps"],
            state["step"], group["lr"], state["qmap1"], state["qmap2"], state["absmax1"], state["absmax2"],
            group["weight_decay"],
        )  # fmt: skip
