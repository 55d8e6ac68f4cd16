"""The Gymnasium ids. This module is imported while Gymnasium itself is (see `gymnasium_hook`), so it stays light."""

from __future__ import annotations

from robust_policies.errors import UnknownNameError

NAMESPACE = "robust_policies"
_TASKS = {"Pendulum-v0": "pendulum", "Linear-v0": "linear"}
ENV_IDS = tuple(f"{NAMESPACE}/{name}" for name in _TASKS)


def register_tasks() -> None:
    """Register all ids of this package with Gymnasium; calling it again changes nothing.

    The time limit is not registered: it is part of task.yaml, which a user's own folder may replace.
    """
    # Imported late: Gymnasium's import calls this function, and importing this module must not import Gymnasium.
    from gymnasium.envs.registration import register, registry

    for name, task in _TASKS.items():
        if f"{NAMESPACE}/{name}" not in registry:
            register(
                id=f"{NAMESPACE}/{name}",
                entry_point="robust_policies.envs.single:TaskEnv",
                vector_entry_point="robust_policies.envs.vector:TorchVectorEnv",
                kwargs={"task": task},
            )


def unknown_environment(env_id: str) -> UnknownNameError:
    """Return the error for an id Gymnasium does not know, naming our ids and those that resemble it, not all."""
    import difflib

    from gymnasium.envs.registration import registry

    others = set(registry) - set(ENV_IDS)
    return UnknownNameError.among(
        "environment", env_id, [*ENV_IDS, *difflib.get_close_matches(env_id, others, n=5, cutoff=0.5)]
    )
