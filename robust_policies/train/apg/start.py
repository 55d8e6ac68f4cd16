"""The policy that a training by analytic policy gradients begins with."""

from __future__ import annotations

import torch

from robust_policies.errors import InvalidValueError
from robust_policies.policies import load_policy
from robust_policies.policies.actor import Actor
from robust_policies.train.imitation.run import ImitationRun
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.imitation import LQG, ImitationSection
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress

# With it the loop of an imitation has a bound where the plant is linear.
_CLOSED_LOOP_WEIGHT = 0.1


def load_start(actor: Actor, source: str) -> None:
    """Give an actor the weights of the policy in a run folder or a policy.json.

    Raises:
        UserError: there is none, or it is of another make than the actor.
    """
    found = load_policy(source).actor
    fixed = dict(actor.named_buffers())
    given = found.state_dict()
    same = {name: value.shape for name, value in actor.state_dict().items()} == {n: v.shape for n, v in given.items()}
    if not same or type(found.cell) is not type(actor.cell) or found.normalizer is not None:
        raise InvalidValueError(
            f"The policy in {source!r} has other parts than the recipe's policy section makes; expected the same cell "
            "and sizes."
        )
    for name, value in fixed.items():
        if name in given and not torch.equal(value.cpu(), given[name].to(value.dtype)):
            raise InvalidValueError(
                f"The policy in {source!r} has another {name} than the recipe's; expected the same scales."
            )
    if _options(found) != _options(actor):
        raise InvalidValueError(
            f"The policy in {source!r} has a cell of other options than the recipe's policy section: expected the "
            "same gamma, rate and activation."
        )
    actor.load_state_dict(given)


def imitated(actor: Actor, recipe: Recipe[ApgSection], device: str, eval_seed: int) -> None:
    """Let an actor learn what the LQG design of the recipe's task does, so that its loop has a bound.

    Raises:
        UserError: the task has no such design, or the policy does not fit.
    """
    section = ImitationSection(
        teacher=LQG, rounds=recipe.algorithm.start_rounds, closed_loop_weight=_CLOSED_LOOP_WEIGHT
    )
    learner = ImitationRun(imitation_of(recipe, section), device, eval_seed)
    progress = Progress()
    try:
        for _ in range(section.rounds):
            learner.update(progress)
            progress.n_updates += learner.updates
    finally:
        learner.close()
    actor.load_state_dict(learner.module.state_dict())


def imitation_of(recipe: Recipe[ApgSection], section: ImitationSection) -> Recipe[ImitationSection]:
    """Return the recipe of that imitation: the same task, seed and policy."""
    task = recipe.task.model_copy(update={"num_envs": min(recipe.task.num_envs, 16)})
    return Recipe[ImitationSection](seed=recipe.seed, task=task, policy=recipe.policy, algorithm=section)


def _options(actor: Actor) -> dict[str, object]:
    options = dict(actor.cell.config())
    options.pop("init", None)
    return options
