"""What the models of other training libraries have in common: a scaled cell, a head, and the policy made of them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates import Certificate
from robust_policies.networks import Cell, make_cell
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling, mean_head
from robust_policies.policies.deployed import DeployedPolicy


def body_and_head(
    inputs: int,
    outputs: int,
    space: spaces.Space | None,
    *,
    cell: str,
    cell_kwargs: Mapping[str, Any] | None,
    cell_output_size: int | None,
    observation_scale: Any,
    observation_offset: Any,
    action_scale: Any,
    action_offset: Any,
    zero_init: bool,
) -> tuple[ScaledCell, MeanHead]:
    """Return the scaled cell and the head of a model, options as `RecurrentCellPolicy` has them.

    Args:
        inputs: how many numbers it reads.
        outputs: how many it gives.
        space: in which it acts, for the default scale and offset of the action; None: not known.
        cell, cell_kwargs, cell_output_size, observation_scale, observation_offset, action_scale, action_offset,
            zero_init: see there.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
    """
    linear = cell_output_size is not None
    width = outputs if cell_output_size is None else checks.positive_int("cell_output_size", cell_output_size)
    made = make_cell(cell, inputs, width, **(cell_kwargs or {}))
    if checks.flag("zero_init", zero_init) and not linear:
        made.zero_output_()
    if space is None:
        head = MeanHead(width, outputs, linear, action_scale, action_offset)
    else:
        head = mean_head(space, width, linear, action_scale, action_offset)
    return ScaledCell(made, Scaling(inputs, observation_scale, observation_offset)), head


class CellModel(ABC):
    """A model of another library whose actor is a cell of this package."""

    body: ScaledCell

    @property
    def cell(self) -> Cell:
        """The recurrent cell."""
        return self.body.cell

    @abstractmethod
    def deployed(self, owner: Any = None, env: Any = None) -> DeployedPolicy:
        """Return a copy, on the CPU, that runs without the library.

        Args:
            owner: the runner or agent that has the model, and with it what its observations go through.
            env: the environment it acts in; None: the owner's, where it has one.

        Raises:
            InvalidValueError: the model is no policy, or its observations go through something unknown.
        """

    def certificate(self, env: Any = None, weights: Sequence[float] | None = None) -> Certificate:
        """Return the certificate of the gain from what the model reads, which it names, to its mean action.

        What learns beside the model, such as a normaliser, counts as it is at this moment.

        Args:
            env: the environment it acts in; None: not known, so nothing is said of raw observations.
            weights: (nu,) the size of one unit of each observation, for a second gain in these units.

        Raises:
            NotCertifiableError: there is no such gain; the message names the reason.
        """
        return self.deployed(env=env).certificate(weights)


def model_of(trained: Any) -> CellModel | None:
    """Return the model with a cell that is given, or that a runner of rsl_rl or an agent of skrl has; None if none."""
    if isinstance(trained, CellModel):
        return trained
    of_runner = getattr(getattr(trained, "alg", None), "get_policy", None)
    models = getattr(trained, "models", None)
    found = of_runner() if callable(of_runner) else models.get("policy") if isinstance(models, Mapping) else None
    return found if isinstance(found, CellModel) else None


def copied(
    body: ScaledCell, head: MeanHead, normalizer: FrozenNormalizer | None = None, scaling: Scaling | None = None
) -> Actor:
    """Return an actor of copies on the CPU; `scaling` takes the place of the body's."""
    cell, own = copy.deepcopy(body.cell).cpu(), scaling or copy.deepcopy(body.scaling).cpu()
    return Actor(ScaledCell(cell, own), copy.deepcopy(head).cpu(), normalizer)
