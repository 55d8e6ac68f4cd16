"""One kind of perturbation with several sets of parameters, each in a block of the environments, in one batch.

What an environment draws and does is what it would in a batch of its block alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from robust_policies.envs.perturb import specs
from robust_policies.envs.perturb.core import Perturbation, Site
from robust_policies.envs.perturb.physics import Force, Shift
from robust_policies.envs.perturb.vector_wrapper import Wrapper
from robust_policies.envs.perturb.wrapping import IMPLEMENTATIONS
from robust_policies.errors import InvalidValueError


class Blocks(specs.Spec):
    """Specifications of one name; the first is that of the first of as many equal blocks of a vector environment."""

    parts: tuple[specs.Spec, ...]

    @property
    def name(self) -> str:
        """The name of the perturbation."""
        return self.parts[0].name


def in_blocks(parts: Sequence[specs.Spec], around: Sequence[specs.Spec]) -> bool:
    """Return whether perturbations in blocks do what they do one by one, inside wrappers `around`.

    A shift of a parameter is written for all environments, and a wrapper that clips to bounds would find those of all
    blocks together.
    """
    alike = len({part.name for part in parts}) == 1 and IMPLEMENTATIONS[parts[0].name] is not Shift
    return alike and all(spec.acts_on != "observation" for spec in around)


class BlocksWrapper(Wrapper):
    """Around a vector environment; the specification that others see is the first block's."""

    def __init__(self, env: VectorEnv, given: Blocks) -> None:
        self.Spec, self.parts = type(given.parts[0]), given.parts  # type: ignore[misc]
        if env.num_envs % len(given.parts):
            raise InvalidValueError(f"{env.num_envs} environments make no {len(given.parts)} equal blocks.")
        super().__init__(env, **given.parts[0].model_dump(exclude_unset=True))

    def _made(self, site: Site) -> Perturbation:
        return _Several([IMPLEMENTATIONS[part.name](part, site) for part in self.parts], site)


class _Several(Perturbation):
    """Perturbations of all environments, of each of which the own block's rows are taken."""

    def __init__(self, parts: list[Perturbation], site: Site) -> None:
        self.parts, self.site = parts, site
        self.spec, self.num_envs, self.device = parts[0].spec, site.num_envs, site.device
        self.draws = any(part.draws for part in parts)
        self.block = torch.arange(len(parts), device=site.device).repeat_interleave(site.num_envs // len(parts))
        found = [part.observation_space or site.observation_space for part in parts]
        self.observation_space = None if all(part.observation_space is None for part in parts) else _hull(found)

    def restart(self, rows: torch.Tensor, words: torch.Tensor, seeded: torch.Tensor | None) -> None:
        """Restart the generators of `rows`, of every part."""
        for part in self.parts:
            part.restart(rows, words, seeded)

    def generators(self) -> list[torch.Tensor]:
        """Return the states of the generators of every part, each (2, n)."""
        return [state for part in self.parts for state in part.generators()]

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations of `rows`, each perturbed as its block is."""
        return self._own([part.start(rows, observation) for part in self.parts], rows)

    def act(self, action: Any) -> tuple[Any, torch.Tensor | None]:
        """Return the actions to apply, each changed as its block's are."""
        return self._own([part.act(action) for part in self.parts])

    def push(self) -> None:
        """Apply each block's force."""
        forces = [(part, part.force()) for part in self.parts if isinstance(part, Force)]
        if forces:
            forces[0][0].target.push(self._rows([force for _, force in forces]))

    def pull(self) -> None:
        """Take the forces back."""
        self.parts[0].pull()

    def commit(self) -> None:
        """Let a step pass everywhere."""
        for part in self.parts:
            part.commit()

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the observations of a step, each perturbed as its block is."""
        return self._own([part.observe(observation) for part in self.parts])

    def release(self) -> None:
        """Leave the environment as it was found."""
        for part in self.parts:
            part.release()

    def _own(self, pairs: list[Any], rows: torch.Tensor | None = None) -> tuple[Any, Any]:
        values, sizes = zip(*pairs, strict=True)
        return self._rows(values, rows), self._rows(sizes, rows)

    def _rows(self, values: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return of each row (n, ...) that of its block's part."""
        block = self.block if rows is None else self.block[rows]
        if rows is None:
            size = self.num_envs // len(self.parts)
            return torch.cat([value[i * size : (i + 1) * size] for i, value in enumerate(values)])
        return torch.stack(values)[block, torch.arange(len(block), device=block.device)]


def _hull(found: list[Any]) -> spaces.Box:
    """Return the smallest Box that holds the observations of all blocks."""
    low, high = np.minimum.reduce([one.low for one in found]), np.maximum.reduce([one.high for one in found])
    return spaces.Box(low, high, dtype=found[0].dtype)
