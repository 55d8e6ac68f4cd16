"""What an error of one sensor at every step can do to each action and each state of a linear plant, for ever.

The policy's actions move the plant and the plant its sensors, so the bound is of the loop: policy and plant are one
system around the policy's neurons, from the error of the one sensor to (states, actions), and `certificates.peak` holds
it in an ellipsoid. Bounds grow in proportion to the error, so that those of one unit say all.
"""

from __future__ import annotations

import numpy as np

from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.peak import peak_bounds
from robust_policies.certificates.trajectory import balanced, contracting
from robust_policies.control.bounded import between
from robust_policies.control.youla import Performance
from robust_policies.errors import NotCertifiableError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.return_certificate import SensorErrors
from robust_policies.policies.return_task import Task, fitting_model, linear_task


def sensor_errors(policy: DeployedPolicy, task: Task, delay: int = 0) -> tuple[SensorErrors, ...]:
    """Return, for each sensor, what one unit of its error at every step can change in the closed loop, for ever.

    Args:
        policy: reads the outputs of the task's plant and gives its inputs.
        task: as of `policies.certified_return`, which says what is raised.
        delay: the same.

    It holds between any two trajectories with the same start and noise while no action is clipped.
    """
    _, plant, _, late = linear_task(task, delay)
    model = fitting_model(policy, plant, late)
    states, actions = plant.state_names, plant.action_names
    n, m = len(states), len(actions)
    signals = Performance(
        np.eye(n + m, n) @ np.eye(n, model.n),
        np.vstack((np.zeros((n, m)), np.eye(m))),
        np.zeros((model.n, 0)),
        np.eye(model.p),
    )
    reason = "no ellipsoid was found that holds the loop"
    try:
        loop = policy.running().loop(model, signals)
    except NotCertifiableError as error:
        loop, reason = None, str(error).rstrip(".")
    found = []
    for number, name in enumerate(plant.output_names):
        bounds = None if loop is None else _bounds(loop, number, n + m)
        each: list[float | None] = [None] * (n + m) if bounds is None else bounds.tolist()
        changes = dict(zip(actions, each[n:], strict=True)), dict(zip(states, each[:n], strict=True))
        found.append(SensorErrors(name, *changes, reason if bounds is None else ""))
    return tuple(found)


def _bounds(loop: Neurons, sensor: int, outputs: int) -> Array | None:
    """Return how far (outputs,) each of the first outputs of a loop can be moved by one unit of one input."""
    _, _, inputs, given = loop.model.sizes
    inward, outward = np.eye(inputs)[:, [sensor]], np.eye(given)[:outputs]
    alone = balanced(loop.mapped(lambda model: between(model, inward, outward)))
    start = next(contracting(alone), None)
    return None if start is None else peak_bounds(alone._replace(theta=start.theta), np.ones(1), start.P)
