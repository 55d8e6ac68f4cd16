"""What an attack learns or records before it attacks, on episodes that are not reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.attacks.attack import Tuning
from robust_policies.evaluation.attacks.registry import attack_class, checked_options
from robust_policies.policies.deployed import DeployedPolicy


def prepare_attack(
    name: str,
    policy: DeployedPolicy,
    env_id: str,
    norm: str,
    options: Mapping[str, Any] | None,
    tuning_seeds: Sequence[int],
    *,
    sizes: Sequence[float] = (0.1, 0.2, 0.3),
    episodes: int = 10,
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    max_steps: int = 2000,
) -> Any:
    """Return what `run_episodes` takes as `prepared` for an attack that learns or records something first, else None.

    Args:
        name: one of `ATTACKS`.
        policy: the policy to attack.
        env_id: the Gymnasium id of the task.
        norm: of the budget, one of `NORMS`.
        options: the attack's settings.
        tuning_seeds: seeds of the episodes that are used; none of them may be reported.
        sizes: the budgets that the attack will have; zeros are left out.
        episodes: for each size and seed.
        env_kwargs: options of the environment.
        perturbations: wrappers around it.
        max_steps: episodes are cut here.

    Raises:
        UnknownNameError, InvalidValueError: the attack, its settings or the seeds are wrong.
    """
    checked = checked_options(name, options)
    kind = attack_class(name)
    if not kind.needs_preparation:
        return None
    seeds, used = list(tuning_seeds), [float(size) for size in sizes if size > 0]
    if not seeds or not used:
        raise InvalidValueError(
            f"{name} is prepared on seeds {seeds} with the sizes {used}; expected at least one seed and one size > 0."
        )
    return kind.prepare(
        checked,
        Tuning(policy, env_id, norm, used, seeds, episodes, dict(env_kwargs or {}), perturbations, max_steps),
    )
