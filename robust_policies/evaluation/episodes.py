"""Episodes under a perturbation that is given by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_policies.envs.batch import Environment
from robust_policies.errors import UnknownNameError
from robust_policies.evaluation.attacks import ATTACKS, make_attack
from robust_policies.evaluation.noise import PERTURBATIONS
from robust_policies.evaluation.rollout import Episodes, OnStep, play_episodes
from robust_policies.policies.deployed import DeployedPolicy

KINDS = (*PERTURBATIONS, *ATTACKS)


def run_episodes(
    policy: DeployedPolicy,
    env_id: Environment,
    kind: str | Sequence[str],
    sizes: Sequence[float],
    episodes: int,
    seed: int,
    *,
    norm: str = "per_step_l2",
    options: Mapping[str, Any] | None = None,
    prepared: Any = None,
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    max_steps: int = 2000,
    on_step: OnStep | None = None,
    record: int = 0,
    episode_seeds: Sequence[int] | None = None,
    draws: Sequence[tuple[int, int]] | None = None,
    factors: Mapping[str, Sequence[float]] | None = None,
    known: dict[Any, Any] | None = None,
) -> Episodes:
    """Return `episodes` episodes at each size of the perturbation `kind`, on top of the wrappers `perturbations`.

    Episode i has the same start, environment noise and random numbers of the perturbation at every size and for every
    attack (common random numbers). No attack exceeds its budget. An episode in which the policy's action or the
    environment's reward is not finite ends there and is marked as failed; the others go on.

    Args:
        policy: the policy.
        env_id: the Gymnasium id of the task, `module:id`, an environment (each episode has a copy), or a function that
            makes one.
        kind: a noise (`PERTURBATIONS`), one for all sizes or one for each, or an attack (`ATTACKS`).
        sizes: multiples of the noise, or the attack's budgets, in the observation's own units.
        episodes: number for each size.
        seed: of the environments and the perturbation.
        norm: of the budget, one of `attacks.NORMS`; noise has none.
        options: the attack's settings, `attacks.attack_options(kind)`.
        prepared: what `attacks.prepare_attack` returned, for the attacks that learn or record something first.
        env_kwargs: options of the environment.
        perturbations: wrappers around the environment, as `envs.perturb.parse` takes them.
        max_steps: episodes are cut here.
        on_step: called after every step of the batch.
        record: of how many first episodes observations, actions and rewards are kept.
        episode_seeds: of the environments, one for each episode; None: those of `seeds_of(seed, episodes)`.
        draws: (seed, number of episodes) of the perturbation's random numbers, for groups of the episodes in turn;
            None: one group, with `seed`.
        factors: for noise in this package's environments: physical parameters by name, one factor for each size.
        known: unperturbed episodes of the same policy in the same environment, which attacks look at: kept here from
            one call to the next.

    Raises:
        UnknownNameError, InvalidValueError: an argument is wrong, or the attack cannot attack this environment.
        ShapeError: the task does not fit the policy. DivergedError: all episodes failed.
    """
    names, allowed = ([kind], KINDS) if isinstance(kind, str) else (kind, tuple(PERTURBATIONS))
    for name in names:
        if name not in allowed:
            raise UnknownNameError.among("perturbation", name, allowed)
    attack = kind if isinstance(kind, str) and kind in ATTACKS else ""
    return play_episodes(
        policy,
        env_id,
        make_attack(attack, options, prepared) if attack else kind,
        sizes,
        episodes,
        seed,
        attack_name=attack,
        norm=norm,
        env_kwargs=env_kwargs,
        perturbations=perturbations,
        max_steps=max_steps,
        on_step=on_step,
        record=record,
        episode_seeds=episode_seeds,
        draws=draws,
        factors=factors,
        known=known,
    )
