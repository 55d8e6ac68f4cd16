"""Attacks by name, and their settings checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robust_policies.envs.batch import Environment, name_of, plant_of
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation.attacks.attack import Attack, Options, checked
from robust_policies.evaluation.attacks.closed_loop_pgd import ClosedLoopPGD
from robust_policies.evaluation.attacks.critic_pgd import CriticPGD
from robust_policies.evaluation.attacks.learned import Learned
from robust_policies.evaluation.attacks.mad_pgd import MADPGD
from robust_policies.evaluation.attacks.random import Random
from robust_policies.evaluation.attacks.sequence_pgd import SequencePGD
from robust_policies.evaluation.attacks.transfer import Transfer

_CLASSES: dict[str, type[Attack]] = {
    "random": Random,
    "mad_pgd": MADPGD,
    "critic_pgd": CriticPGD,
    "sequence_pgd": SequencePGD,
    "closed_loop_pgd": ClosedLoopPGD,
    "learned": Learned,
    "transfer": Transfer,
}


def attack_class(name: str) -> type[Attack]:
    """Return an attack's class; raises UnknownNameError."""
    if name not in _CLASSES:
        raise UnknownNameError.among("attack", name, _CLASSES)
    return _CLASSES[name]


def attack_options(name: str) -> type[Options]:
    """Return the model of an attack's settings, with defaults and descriptions; raises UnknownNameError."""
    return attack_class(name).Options


def checked_options(name: str, options: Mapping[str, Any] | None) -> Options:
    """Return an attack's settings, checked; raises UnknownNameError, InvalidValueError."""
    return checked(attack_options(name), name, options)


def make_attack(name: str, options: Mapping[str, Any] | None = None, prepared: Any = None) -> Attack:
    """Return the attack `name` with checked settings; raises UnknownNameError, InvalidValueError."""
    settings = checked_options(name, options)
    if _CLASSES[name].needs_preparation and prepared is None:
        raise InvalidValueError(f"{name} must be prepared on other episodes first; give prepared=prepare_attack(...).")
    return _CLASSES[name](settings, prepared)


def why_not(name: str, env_id: Environment, env_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """Return why an attack cannot attack an environment, None if it can; raises UnknownNameError."""
    attack_options(name)
    if name != "closed_loop_pgd":
        return None
    plant = plant_of(env_id, env_kwargs)
    if plant is None:
        return f"{name_of(env_id)} is not one of this package's environments, through whose plants gradients flow"
    return None if plant.differentiable else f"no gradient flows through the plant of {name_of(env_id)} ({plant.kind})"
