"""Whether a policy keeps the linear model of its plant stable: what is measured of every policy on the way.

The loop of linear model and policy is one map z+ = F(z) + G w without clipped inputs, z the state of the model beside
the policy's memory (a Youla policy's loop: model, error of its observer, memory of its Youla parameter). Two measures:
the spectral radius of F's Jacobian at the loop's own equilibrium z = F(z), and how many trajectories from the task's
start distribution run away under a bounded disturbance. Neither is a proof; that is the certificate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.norms import radius
from robust_policies.errors import NotCertifiableError
from robust_policies.policies import DeployedPolicy, YoulaPolicy

STEPS = 300
# In sizes of the states: the disturbance of every step, and how far a trajectory is when it counts as running away.
PUSH, FAR = 0.01, 1000.0


@dataclass(frozen=True)
class Loop:
    """F of a closed loop.

    Attributes:
        step: z (batch, n) -> F(z), float64.
        size: n.
        entry: (states of the model, n): G, and how a start of the model's state enters z.
    """

    step: Callable[[Tensor], Tensor]
    size: int
    entry: Tensor

    def jacobian(self, z: Tensor) -> Tensor:
        """Return dF/dz (n, n) at z (n,)."""
        copies = z.expand(self.size, self.size).clone().requires_grad_()
        # Row i of the batch is differentiated for output i alone: one backward pass for all of them.
        return torch.autograd.grad(self.step(copies).diagonal().sum(), copies)[0]


def closed_loop(policy: DeployedPolicy, model: LinearModel) -> Loop:
    """Return the loop of `model`, in deviations from its equilibrium, and a policy; no input is clipped.

    Raises NotCertifiableError for a Youla policy whose parameter is no R2DN.
    """
    n = model.n
    if isinstance(policy, YoulaPolicy):
        cell = policy.searched()
        if cell is None:
            raise NotCertifiableError("The Youla parameter is no R2DN; its loop is not known as one cell.")
        explicit, calm = cell.explicit(), torch.zeros(cell.input_size, dtype=torch.float64)
        # The observer starts at the equilibrium and knows nothing of disturbances: both enter its error too.
        entry = torch.cat((torch.eye(n), torch.eye(n), torch.zeros(n, cell.state_size - 2 * n)), 1).double()
        return Loop(lambda z: cell.step(explicit, calm.expand(len(z), -1), z)[1], cell.state_size, entry)
    actor = copy.deepcopy(policy.actor).double()
    with torch.no_grad():
        explicit = actor.body.cell.explicit()
    A, B, C, u0, y0 = (torch.as_tensor(np.array(value)) for value in (model.A, model.B, model.C, model.u0, model.y0))

    def step(z: Tensor) -> Tensor:
        x, memory = z[:, :n], z[:, n:]
        output, memory = actor.body.cell.step(explicit, actor.body.scaling(x @ C.T + y0), memory)
        return torch.cat((x @ A.T + (actor.head(output) - u0) @ B.T, memory), -1)

    size = n + actor.cell.state_size
    return Loop(step, size, torch.eye(n, size, dtype=torch.float64))


def equilibrium(loop: Loop, tolerance: float = 1e-9, iterations: int = 100) -> Tensor | None:
    """Return z (n,) with F(z) = z found by Newton's method from zero, steps halved until they help; None if not."""
    z, eye = torch.zeros(loop.size, dtype=torch.float64), torch.eye(loop.size, dtype=torch.float64)

    def residual(z: Tensor) -> Tensor:
        with torch.no_grad():
            return loop.step(z[None])[0] - z

    now = residual(z)
    for _ in range(iterations):
        if float(now.norm()) <= tolerance * (1.0 + float(z.norm())):
            return z
        step, *_ = torch.linalg.lstsq(loop.jacobian(z) - eye, -now[:, None], driver="gelsd")
        for halved in range(30):
            tried = z + step[:, 0] * 0.5**halved
            if float((found := residual(tried)).norm()) < float(now.norm()):
                z, now = tried, found
                break
        else:
            return None
    return None


def spectral_radius(loop: Loop) -> float | None:
    """Return that of F's Jacobian at the loop's equilibrium; None where Newton's method finds none."""
    z = equilibrium(loop)
    return None if z is None else radius(loop.jacobian(z).numpy())


def runaways(loop: Loop, starts: Tensor, scale: np.ndarray, steps: int = STEPS) -> int:
    """Return how many trajectories are ever further than FAR times `scale` from the equilibrium of the model.

    Args:
        loop: of model and policy.
        starts: (trajectories, states) of the model, deviations from its equilibrium.
        scale: (states,) sizes of the states: a uniform disturbance of PUSH times them enters in every step, the same
            numbers for every loop.
        steps: number of them.
    """
    draw, sizes = np.random.default_rng(0), torch.as_tensor(scale, dtype=torch.float64)
    z = starts.double() @ loop.entry
    gone = torch.zeros(len(z), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(steps):
            push = torch.as_tensor(draw.uniform(-PUSH, PUSH, tuple(starts.shape))) * sizes
            z = loop.step(z) + push @ loop.entry
            gone |= ~(z[:, : len(sizes)].abs() <= FAR * sizes).all(1)
            # What is gone is counted; left alone it would reach infinity.
            z = torch.where(gone[:, None], 0.0, z)
    return int(gone.sum())
