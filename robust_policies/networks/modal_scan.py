"""The run over time of a linear system with complex poles, without a loop over time.

s_t = a k_t s_(t-1) + b_t is added up by doubling: after round j every s_t holds what 2^j steps before t contribute, so
log2 T rounds are enough, and a reset (k_t = 0) cuts what is older. Its derivative is the same sum backwards in time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_policies.networks.program import transformed

# A power of the largest pole below this adds nothing to any float.
_NOTHING = 1e-30


def modal_scan(poles: Tensor, drive: Tensor, keep: Tensor | None) -> Tensor:
    """Return s (time, batch, n) with s_t = poles keep_t s_(t-1) + drive_t, s_(-1) = 0.

    Args:
        poles: (n,) complex.
        drive: (time, batch, n) complex; what a first state contributes is part of drive_0.
        keep: (time, batch, 1) bool, False where the state was reset before that step; None: nowhere.
    """
    if transformed((poles, drive)):
        return _added_up(poles, drive, keep)
    return _Scan.apply(poles, drive, keep)


def _added_up(poles: Tensor, drive: Tensor, keep: Tensor | None) -> Tensor:
    sums, power, reach = drive, poles, 1
    # A GPU would be waited for; there are a few rounds at most.
    while reach < len(drive) and (drive.is_cuda or float(power.detach().abs().max()) > _NOTHING):
        older = power * sums[:-reach]
        if keep is not None:
            older = older * keep[reach:]
            keep = torch.cat((keep[:reach], keep[reach:] & keep[:-reach]))
        sums = torch.cat((sums[:reach], sums[reach:] + older))
        power, reach = power * power, 2 * reach
    return sums


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, poles: Tensor, drive: Tensor, keep: Tensor | None) -> Tensor:
        sums = _added_up(poles, drive, keep)
        ctx.save_for_backward(poles, sums)
        ctx.keep = keep
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        poles, sums = ctx.saved_tensors
        keep = ctx.keep
        # What a step contributes to all later ones, from the last to the first.
        links = None if keep is None else keep.flip(0).roll(1, 0)
        drive = modal_scan(poles.conj(), grads[0].flip(0), links).flip(0)
        if not ctx.needs_input_grad[0]:
            return None, drive, None
        before = sums[:-1] if keep is None else sums[:-1] * keep[1:]
        return (drive[1:] * before.conj()).sum((0, 1)), drive, None
