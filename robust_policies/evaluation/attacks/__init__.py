"""Attacks on observations: every search stays within a stated budget, batched over episodes and sizes."""

from robust_policies.evaluation.attacks.budget import NORMS
from robust_policies.evaluation.attacks.prepare import prepare_attack
from robust_policies.evaluation.attacks.registry import ATTACKS, attack_options, make_attack, why_not

__all__ = ["ATTACKS", "NORMS", "attack_options", "make_attack", "prepare_attack", "why_not"]
