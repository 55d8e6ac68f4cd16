"""Tasks and policies of results/certified: recipes that ship, all with the same steps and environments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml

from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import Plant, load_plant
from robust_policies.files import assets
from robust_policies.policies.region_loop import squares_of
from robust_policies.train import load_recipe

UPDATES, ENVIRONMENTS = 60, 64
SMALL_START = 0.01
"""Of the cart-pole: m, m/s, rad and rad/s; what balances starts near the upright."""
METHODS = {
    "lqg": "LQG",
    "r2dn": "direct R2DN",
    "lstm": "LSTM",
    "youla": "Youla-R2DN",
    "certified": "Youla-R2DN, trained for the certificate",
    "direct": "R2DN imitating the LQG, trained for the certificate",
}


@dataclass(frozen=True)
class Study:
    """One task.

    Attributes:
        task: Gymnasium id of what is measured.
        unit: of the observation.
        sizes: of the perturbations.
        sigmas: the same in deviations of the sensor's noise, empty where there is none.
        certified: the recipe whose Youla section, learning rate and cell are taken.
        certified_size: that is trained for.
        delays: of the actions, in steps.
        name: of the task in the names of recipes.
        horizon: steps of an episode.
        best: the return of an episode without any cost.
        direct: whether an imitating R2DN is trained for the certificate too.
        own: whether the policies are trained on a linear model of the task that is made here.
    """

    task: str
    unit: str
    sizes: tuple[float, ...]
    sigmas: tuple[float, ...]
    certified: str
    certified_size: float
    name: str
    horizon: int = 200
    delays: tuple[int, ...] = (1, 2, 3)
    best: float = 0.0
    direct: bool = False
    own: bool = False

    def methods(self) -> list[str]:
        """Return the names of the policies."""
        return [name for name in METHODS if name != "direct" or self.direct]

    def plant(self) -> Plant:
        """Return the equations of the task."""
        return load_plant(gymnasium.spec(self.task).kwargs["task"])

    def environment(self, runs: Path) -> dict[str, Any]:
        """Return the options of the environment that is measured."""
        return {"task": str(near_task(runs)), "max_episode_steps": self.horizon} if self.own else {}

    def recipe(self, method: str, runs: Path) -> tuple[str, list[str]]:
        """Return the recipe of a method and what is changed in it."""
        if self.own and method in ("r2dn", "lstm"):
            # Gradients through a whole episode of an unstable plant explode: the horizon of the recipes stays.
            kwargs = json.dumps(self.environment(runs))
            return f"{self.name}_{method}_apg", [f"task.kwargs={kwargs}", *_steps(self.horizon)]
        direct = load_recipe(f"{self.name}_r2dn_apg")
        changes = [*_steps(self.horizon), f"algorithm.horizon={self.horizon}", "checkpoints.keep=last"]
        changes += ["algorithm.discount=1.0", "algorithm.value_tail=false"]
        if self.own:
            linear = {"id": "robust_policies/Linear-v0", "kwargs": {"task": str(linear_task(self, runs))}}
            changes.append(f"task={json.dumps({**linear, 'num_envs': ENVIRONMENTS})}")
        if method == "r2dn":
            return f"{self.name}_r2dn_apg", [*changes, "algorithm.learning_rate=cos_1e-2"]
        if method == "lstm":
            scales = direct.policy.observation_scale, direct.policy.action_scale
            pairs = zip(("observation_scale", "action_scale"), scales, strict=True)
            changes.append(f"task.id={self.task}")
            changes += [f"policy.{key}={json.dumps(value)}" for key, value in pairs]
            return "mass_spring_damper_lstm_apg", changes
        if method == "direct":
            return self.certified, changes
        if self.direct:
            changes += ["youla={}", "algorithm.start=null", "algorithm.learning_rate=cos_2e-2", "policy.gamma=null"]
        if self.own:
            changes.append("algorithm.learning_rate=cos_5e-3")
        size = "null" if method in ("youla", "lqg") else f"{self.certified_size:g}"
        return self.certified, [*changes, f"algorithm.certified_size={size}"]


def _steps(horizon: int) -> list[str]:
    """Return the changes of a recipe that all policies share."""
    steps = UPDATES * ENVIRONMENTS * horizon
    return [
        f"task.num_envs={ENVIRONMENTS}", f"algorithm.total_steps={steps}", "checkpoints.certify_every=0",
        f"checkpoints.evaluate_every={steps}",
    ]  # fmt: skip


def _linear(task: str, sigma: float, name: str, certified: str, unit: str, **others: Any) -> Study:
    sigmas = (0.5, 1.0, 2.0, 5.0)
    sizes = tuple(sigma * factor for factor in sigmas)
    return Study(f"robust_policies/{task}-v0", unit, sizes, sigmas, certified, 3 * sigma, name, **others)


STUDIES = {
    "double_integrator": _linear(
        "DoubleIntegrator", 0.02, "double_integrator", "double_integrator_certified", "m", direct=True
    ),
    "mass_spring_damper": _linear(
        "MassSpringDamper", 0.02, "mass_spring_damper", "mass_spring_damper_youla_certified", "m"
    ),
    "dc_motor": _linear("DCMotor", 0.002, "dc_motor", "dc_motor_youla_certified", "rad"),
    "aircraft_pitch": _linear(
        "AircraftPitch", 0.002, "aircraft_pitch", "aircraft_pitch_youla_certified", "rad", horizon=400
    ),
    "cart_pole": Study(
        "robust_policies/CartPoleContinuous-v0", "m, m/s, rad, rad/s", (0.002, 0.005, 0.01, 0.02), (),
        "cartpole_youla_r2dn_apg", 0.001, "cartpole", best=200.0, own=True,
    ),
}  # fmt: skip


def near_task(runs: Path) -> Path:
    """Write the cart-pole's task with starts near the upright, and return its folder."""
    entries = yaml.safe_load((assets.task_folder("cartpole_continuous") / "task.yaml").read_text())
    entries["reset"], entries["randomize"] = {"angle": 0.0, "spread": SMALL_START}, {}
    return _written(runs / "cart_pole" / "near", entries)


def linear_task(study: Study, runs: Path) -> Path:
    """Write the linear model of a task, at its upright, as a task, and return its folder."""
    plant = load_plant(str(near_task(runs)))
    n, m = plant.state_size, len(plant.action_high)
    model = linearize_plant(plant, np.zeros(n), np.zeros(m))
    squares = squares_of(plant)
    entries = {
        "schema": 1, "plant": "linear", "description": "The cart-pole about its upright, linear.",
        "time_step": plant.time_step, "max_episode_steps": 200, "parameters": {
            "A": model.A.tolist(), "B": model.B.tolist(), "C": model.C.tolist()},
        "limits": {"action": [float(value) for value in plant.action_high]},
        "cost": {"Q": np.diag(squares.Q).tolist(), "R": np.diag(squares.R).tolist()},
        "reset": {"distribution": "uniform", "mean": [0.0] * n, "spread": [SMALL_START] * n},
    }  # fmt: skip
    return _written(runs / "cart_pole" / "linear", entries)


def _written(folder: Path, entries: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
    return folder.resolve()
