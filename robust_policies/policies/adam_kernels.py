"""Adam's step and the length of a gradient in compiled loops over all parameters, wherever they lie in memory.

Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numba.core import types
from numba.extending import intrinsic

from robust_policies.networks.tiles import compiled


@intrinsic
def _pointer(typing_context, address):
    """Return an address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@compiled
def norm(slopes):
    """Return the length of all numbers of float32 that lie at addresses, slopes (n, 2) address and count each."""
    total = 0.0
    for k in range(len(slopes)):
        x = carray(_pointer(slopes[k, 0]), (slopes[k, 1],), np.float32)  # pyright: ignore[reportCallIssue]
        for i in range(len(x)):
            total += np.float64(x[i]) * np.float64(x[i])
    return math.sqrt(total)


@compiled
def step(table, slopes, counts, divisor, lr, beta1, beta2, decay, eps, maximize):
    """Take Adam's step for parameters of float32, as `torch.optim.Adam` has it.

    Args:
        table: (n, 4) addresses of parameters, means and squares, and how many numbers each is.
        slopes: (n, 2) addresses of the gradients first.
        counts: (n,) steps taken before, which are counted on.
        divisor: of the gradients.
        lr: the learning rate.
        beta1: of the means.
        beta2: of the squares.
        decay: the weight decay.
        eps: added to the root of the squares.
        maximize: whether the step is uphill.
    """
    f = np.float32
    one, other, scale = f(1.0 - beta1), f(1.0 - beta2), f((-1.0 if maximize else 1.0) / divisor)
    for k in range(len(table)):
        count = table[k, 3]
        p = carray(_pointer(table[k, 0]), (count,), np.float32)  # pyright: ignore[reportCallIssue]
        m = carray(_pointer(table[k, 1]), (count,), np.float32)
        v = carray(_pointer(table[k, 2]), (count,), np.float32)
        g = carray(_pointer(slopes[k, 0]), (count,), np.float32)
        counts[k] += f(1.0)
        pace = f(lr / (1.0 - beta1 ** counts[k]))
        root = f(1.0 / math.sqrt(1.0 - beta2 ** counts[k]))
        for i in range(count):
            slope = scale * g[i] + f(decay) * p[i]
            m[i] += one * (slope - m[i])
            v[i] = f(beta2) * v[i] + other * slope * slope
            p[i] -= pace * m[i] / (math.sqrt(v[i]) * root + f(eps))
