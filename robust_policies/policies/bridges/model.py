"""What the models of other training libraries have in common: a scaled cell, a head, and the policy made of them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates import Certificate
from robust_policies.errors import UnknownNameError
from robust_policies.networks import Cell, make_cell
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling, mean_head
from robust_policies.policies.deployed import DeployedPolicy


@dataclass(frozen=True)
class CellOptions:
    """What a model is made of; all as `RecurrentCellPolicy` has them.

    Attributes:
        cell, cell_kwargs: one of `networks.CELLS`, and its options.
        cell_output_size: None: the cell's output is what the model gives; else a linear head follows.
        observation_scale, observation_offset: the cell's input is (observation - offset) / scale; fixed.
        action_scale, action_offset: fixed, of the output.
        zero_init: what the model gives is the offset at first, where no head follows the cell.
    """

    cell: str = "r2dn"
    cell_kwargs: Mapping[str, Any] | None = None
    cell_output_size: int | None = None
    observation_scale: Any = None
    observation_offset: Any = None
    action_scale: Any = None
    action_offset: Any = None
    zero_init: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return the options given by name; raises UnknownNameError."""
        known = [option.name for option in fields(cls)]
        for name in given:
            if name not in known:
                raise UnknownNameError.among("option of the model", name, known)
        return cls(**given)

    def build(self, inputs: int, outputs: int, space: spaces.Space | None = None) -> tuple[ScaledCell, MeanHead]:
        """Return the scaled cell and the head of a model that reads `inputs` numbers and gives `outputs`.

        In a finite Box `space` the action has the default scale and offset of `mean_head`.

        Raises:
            InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
        """
        linear, width = self.cell_output_size is not None, outputs
        if linear:
            width = checks.positive_int("cell_output_size", self.cell_output_size)
        cell = make_cell(self.cell, inputs, width, **(self.cell_kwargs or {}))
        if checks.flag("zero_init", self.zero_init) and not linear:
            cell.zero_output_()
        scaling = Scaling(inputs, self.observation_scale, self.observation_offset)
        scale, offset = self.action_scale, self.action_offset
        if space is None:
            return ScaledCell(cell, scaling), MeanHead(width, outputs, linear, scale, offset)
        return ScaledCell(cell, scaling), mean_head(space, width, linear, scale, offset)


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


def policy_from_cell(
    cell: Cell,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    *,
    observation_scale: Any = None,
    observation_offset: Any = None,
    action_scale: Any = None,
    action_offset: Any = None,
    log_std: Tensor | None = None,
    raw: bool = False,
) -> DeployedPolicy:
    """Return the policy that a cell is, of which a training loop of one's own had only the cell; it holds a copy.

    Its mean action is the cell's output times `action_scale` plus `action_offset`, of choices their logits.

    Args:
        cell: reads (observation - offset) / scale.
        observation_space: of the environment.
        action_space: of the environment.
        observation_scale: as `RecurrentCellPolicy` has it, and so the next three, also where they are left out.
        observation_offset: in units of the observation.
        action_scale: of the output.
        action_offset: in units of the action.
        log_std: (na,) of the Gaussian exploration, where there was one.
        raw: nothing stands between the environment's sensors and the cell but these scalings.

    Raises:
        ShapeError, InvalidValueError: cell, spaces and scales do not fit one another.
    """
    scaling = Scaling(cell.input_size, observation_scale, observation_offset)
    head = mean_head(action_space, cell.output_size, False, action_scale, action_offset)
    actor = copied(ScaledCell(cell, scaling), head)
    return DeployedPolicy(actor, observation_space, action_space, None if log_std is None else log_std.cpu(), raw=raw)
