"""What every perturbation of one Gymnasium environment is: the N = 1 view of the batched one, NumPy in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs

from robust_policies import checks
from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.perturb import specs, wrapping
from robust_policies.envs.perturb.core import Site, kept_generators, restore_generators
from robust_policies.envs.perturb.randomness import generator_words
from robust_policies.errors import InvalidValueError, ShapeError, UserError

_CPU = torch.device("cpu")


def _singular(match: re.Match[str]) -> str:
    return "action " + {"have": "has", "hold": "holds", "are": "is"}[match[1]]


class Wrapper(gymnasium.Wrapper, RecordConstructorArgs):
    """Base of the perturbations; `specification` holds the parameters, `perturbation` what acts."""

    Spec: ClassVar[type[specs.Spec]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Spec" in cls.__dict__:
            # What `inspect.signature` reads.
            cls.__signature__ = wrapping.signature(cls.Spec)  # type: ignore[attr-defined]
            cls.__doc__ = wrapping.documentation(cls.Spec)

    def __init__(self, env: gymnasium.Env, *args: Any, **kwargs: Any) -> None:
        self.specification = self.Spec.given(args, kwargs)
        RecordConstructorArgs.__init__(self, **self.specification.model_dump(exclude_unset=True))
        gymnasium.Wrapper.__init__(self, env)
        name = self.specification.name
        site = Site(
            num_envs=1,
            device=_CPU,
            observation_space=env.observation_space,
            action_space=env.action_space,
            natural_observation_space=wrapping.natural_space(env, "observation_space"),
            unwrapped=env.unwrapped,
            position=wrapping.position(env, name),
        )
        self.perturbation = wrapping.IMPLEMENTATIONS[name](self.specification, site)
        if self.perturbation.observation_space is not None:
            self.observation_space = self.perturbation.observation_space
        self._row = torch.zeros(1, dtype=torch.int64)
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observation, perturbed, and the info with the realised size."""
        perturbation = self.perturbation
        if seed is None and perturbation.draws:
            # A generator that cannot be used must be refused before the environment is reset.
            generator_words(self.unwrapped, self._row)
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        with plain_tensors():
            if perturbation.draws:
                seeded = None if seed is None else self._row
                perturbation.restart(self._row, generator_words(self.unwrapped, self._row), seeded)
            perturbed, size = perturbation.start(self._row, self._flat(observation))
        self._started = True
        return self._array(perturbed, observation), self._informed(info, size)

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Return the observation, perturbed, reward, terminated, truncated and the info with the realised size."""
        if not self._started:
            raise InvalidValueError("step was called before reset; call reset() first.")
        perturbation = self.perturbation
        # Before the environment has accepted the action, only a perturbation of actions draws.
        kept = kept_generators(perturbation)
        with plain_tensors():
            try:
                applied, size = self._act(action)
                perturbation.push()
                try:
                    observation, reward, terminated, truncated, info = self.env.step(applied)
                finally:
                    perturbation.pull()
            except Exception:
                restore_generators(perturbation, kept)
                raise
            perturbation.commit()
            perturbed, observed_size = perturbation.observe(self._flat(observation))
        size = observed_size if size is None else size
        return self._array(perturbed, observation), reward, terminated, truncated, self._informed(info, size)

    def close(self) -> None:
        """Undo what was changed in the environment, and close it."""
        self.perturbation.release()
        super().close()

    def _act(self, action: Any) -> tuple[Any, torch.Tensor | None]:
        if self.specification.acts_on != "action":
            return action, None
        try:
            given = np.asarray(action)
        except ValueError as error:
            raise ShapeError(f"action is not an array of numbers: {error}.") from error
        checks.shape("action", given, self.action_space.shape or ())
        try:
            applied, size = self.perturbation.act(wrapping.tensor_of("actions", given, _CPU)[None])
        except UserError as error:
            raise type(error)(re.sub("^actions (have|hold|are)", _singular, str(error))) from error
        array = applied[0].numpy().astype(given.dtype, copy=False)
        return (array if array.ndim else array[()]), size

    def _flat(self, observation: Any) -> torch.Tensor:
        return wrapping.tensor_of("observations", np.asarray(observation), _CPU).reshape(1, -1)

    def _array(self, perturbed: torch.Tensor, like: Any) -> np.ndarray:
        array = perturbed[0].numpy().reshape(np.shape(like))
        return array.copy() if np.shares_memory(array, like) else array

    def _informed(self, info: Mapping[str, Any], size: torch.Tensor) -> dict[str, Any]:
        name, place = self.specification.name, self.perturbation.site.position
        extra = {wrapping.info_key(name, place, end): float(v[0]) for end, v in self.perturbation.more().items()}
        return {**info, wrapping.info_key(name, place): float(size[0]), **extra}
