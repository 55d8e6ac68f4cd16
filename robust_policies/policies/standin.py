from dataclasses import dataclass

import numpy as np
import torch

from robust_policies.control import lqg
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.weights import Weights


@dataclass(frozen=True, eq=False)
class LQGDesign:
    K: np.ndarray
    L: np.ndarray
    M: np.ndarray
    P: np.ndarray
    S: np.ndarray
    weights: Weights
    rho_control: float
    rho_estimator: float
    estimator: str


def linearize_plant(plant, state=None, action=None):
    if plant.kind == "linear":
        return LinearModel(plant.A, plant.B, plant.C, time_step=plant.time_step, W=plant.E @ plant.E.T,
                           V=plant.F @ plant.F.T, Q=plant.Q, R=plant.R, action_low=plant.action_low, action_high=plant.action_high)
    x0 = torch.zeros(plant.state_size, dtype=torch.float64)
    u0 = torch.zeros(plant.action_size, dtype=torch.float64)
    p = plant.prepare(plant.nominal())
    A, B = torch.autograd.functional.jacobian(lambda x, u: plant.step(x, u, p), (x0, u0))
    C = torch.autograd.functional.jacobian(lambda x: plant.observe(x, p), x0)
    y0 = plant.observe(x0, p)
    angles = (0, 1) if plant.kind == "qube" else ()
    return LinearModel(A.numpy(), B.numpy(), C.numpy(), time_step=plant.time_step, y0=y0.numpy(), angles=angles,
                       action_low=plant.action_low, action_high=plant.action_high)


def design(model, Q=None, R=None, W=None, V=None, estimator="current"):
    lqg._known(estimator)
    n, m, p = model.n, model.m, model.p
    pick = lambda a, b, size, s: a if a is not None else b if b is not None else s * np.eye(size)
    Q, R = pick(Q, model.Q, n, 1.0), pick(R, model.R, m, 1.0)
    W, V = pick(W, model.W, n, 1e-4), pick(V, model.V, p, 1e-4)
    P, K = lqg._regulator(model.A, model.B, Q, R)
    S, M = lqg._filter(model.A, model.C, W, V)
    return LQGDesign(K, model.A @ M, M, P, S, Weights(Q, R, W, V, {}), 0.0, 0.0, estimator)
