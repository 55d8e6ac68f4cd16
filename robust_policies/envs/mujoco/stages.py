"""The last time step of a classical Runge-Kutta integrator by hand, for what MuJoCo computes inside it.

After mj_step, MuJoCo's derived quantities (positions of sites, forces of limits) are those of the last evaluation in
the step, not of the new state; an environment that reads them without computing them anew, as Gymnasium's do, sees
those of the fourth Runge-Kutta stage. Sensors show those of the first. So this takes the step itself: four evaluations
of the acceleration a(q, v), as many as MuJoCo needs, with the sensors of the last.

    q2 = q + h/2 v,  v2 = v + h/2 a1;  q3 = q + h/2 v2,  v3 = v + h/2 a2;  q4 = q + h v3,  v4 = v + h a3
    q+ = q + h/6 (v + 2 v2 + 2 v3 + v4),  v+ = v + h/6 (a1 + 2 a2 + 2 a3 + a4)
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from robust_policies.envs.mujoco.backend import Advanced, Evaluated


def runge_kutta(evaluate: Callable[[torch.Tensor], Evaluated], physics: torch.Tensor, nq: int, h: float) -> Advanced:
    """Return the state one time step of h seconds later, with the sensors of the fourth stage.

    `physics` is (n, 2 nq): positions and velocities of hinges and slides, whose positions change with their velocity.
    """
    q, v = physics[:, :nq], physics[:, nq:]
    first = evaluate(physics)
    failed, a1 = first.failed.clone(), first.acceleration
    v2 = v + h / 2 * a1
    second = evaluate(torch.cat((q + h / 2 * v, v2), dim=-1))
    failed, a2 = failed | second.failed, second.acceleration
    v3 = v + h / 2 * a2
    third = evaluate(torch.cat((q + h / 2 * v2, v3), dim=-1))
    failed, a3 = failed | third.failed, third.acceleration
    v4 = v + h * a3
    fourth = evaluate(torch.cat((q + h * v3, v4), dim=-1))
    failed, a4 = failed | fourth.failed, fourth.acceleration
    positions = q + h / 6 * (v + 2 * v2 + 2 * v3 + v4)
    velocities = v + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
    return Advanced(torch.cat((positions, velocities), dim=-1), fourth.sensors, failed)
