"""The Gymnasium ids. This module is imported while Gymnasium itself is (see `gymnasium_hook`), so it stays light."""

from __future__ import annotations

from pathlib import Path

from robust_policies.errors import UnknownNameError

NAMESPACE = "robust_policies"
_TASKS = {
    "Pendulum-v0": "pendulum",
    "PendulumNoVelocity-v0": "pendulum_no_velocity",
    "CartPole-v0": "cartpole",
    "CartPoleContinuous-v0": "cartpole_continuous",
    "CartPoleSwingUp-v0": "cartpole_swingup",
    "QubeServo-v0": "qube_servo",
    "MagLev-v0": "maglev",
    "QuadrotorPlanar-v0": "quadrotor_planar",
    "Quadrotor-v0": "quadrotor",
    "Linear-v0": "linear",
    "DoubleIntegrator-v0": "double_integrator",
    "MassSpringDamper-v0": "mass_spring_damper",
    "AircraftPitch-v0": "aircraft_pitch",
    "DCMotor-v0": "dc_motor",
    "DoyleLQG-v0": "doyle_lqg",
    "YoulaExample-v0": "youla_example",
    "InvertedPendulum-v0": "inverted_pendulum",
    "InvertedDoublePendulum-v0": "inverted_double_pendulum",
    "Reacher-v0": "reacher",
    "Hopper-v0": "hopper",
    "HopperNoVelocity-v0": "hopper_no_velocity",
    "HalfCheetah-v0": "half_cheetah",
    "Walker2d-v0": "walker2d",
}
SINGLE = "robust_policies.envs.single:TaskEnv"
VECTOR = "robust_policies.envs.vector:TorchVectorEnv"
ENV_IDS = tuple(f"{NAMESPACE}/{name}" for name in _TASKS)
IDENTIFIED = f"{NAMESPACE}/Identified-v0"
"""A task of the user's own: its option `model` is the folder of an identified model, or several."""

FMU = f"{NAMESPACE}/Fmu-v0"
"""An FMU of the user's own: its option `fmu` is the file."""


def register_tasks() -> None:
    """Register all ids of this package with Gymnasium; calling it again changes nothing.

    The time limit is not registered: it is part of task.yaml, which a user's own folder may replace.
    """
    # Imported late: Gymnasium's import calls this function, and importing this module must not import Gymnasium.
    from gymnasium.envs.registration import register, registry

    tasks = {f"{NAMESPACE}/{name}": task for name, task in _TASKS.items()}
    tasks[IDENTIFIED] = str(Path(__file__).parents[1] / "identification" / "task.yaml")
    for name, task in tasks.items():
        if name not in registry:
            register(
                id=name,
                entry_point=SINGLE,
                vector_entry_point=VECTOR,
                kwargs={"task": task},
            )
    if FMU not in registry:
        register(id=FMU, entry_point="robust_policies.envs.fmu:FmuEnv")


def unknown_environment(env_id: str) -> UnknownNameError:
    """Return the error for an id Gymnasium does not know: the one that resembles it, and how others are named."""
    import difflib

    from gymnasium.envs.registration import registry

    close = difflib.get_close_matches(env_id.rpartition(":")[2], {*ENV_IDS, *registry}, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownNameError(
        f"Unknown environment {env_id!r}.{hint} Known are this package's (`robust-policies list envs`) and what "
        "Gymnasium registers; name one of your own module:id, and the module that registers it is imported first."
    )
