"""What every perturbation of a vector environment is, ours (tensors stay on the device) or Gymnasium's (NumPy)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.perturb import specs, wrapping
from robust_policies.envs.perturb.core import Perturbation, Site, kept_generators, restore_generators
from robust_policies.envs.perturb.randomness import generator_words
from robust_policies.errors import InvalidValueError


class Wrapper(VectorWrapper, RecordConstructorArgs):
    """Base of the perturbations; `specification` holds the parameters, `perturbation` what acts.

    An episode's perturbation (generator, delay line, held value, bias, time of a force) begins anew with the episode,
    in every autoreset mode. In SAME_STEP, `final_obs` is perturbed as the last observation of the old episode and the
    returned one as the first of the new; `info["final_info"]` holds the sizes of the last step.
    """

    Spec: ClassVar[type[specs.Spec]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Spec" in cls.__dict__:
            # What `inspect.signature` reads.
            cls.__signature__ = wrapping.signature(cls.Spec)  # type: ignore[attr-defined]
            cls.__doc__ = wrapping.documentation(cls.Spec)

    def __init__(self, env: VectorEnv, *args: Any, **kwargs: Any) -> None:
        self.specification = self.Spec.given(args, kwargs)
        RecordConstructorArgs.__init__(self, **self.specification.model_dump(exclude_unset=True))
        VectorWrapper.__init__(self, env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise InvalidValueError(
                f"{self.Spec.__name__} was given {env}, whose metadata has no autoreset_mode; expected one."
            )
        self.autoreset_mode = mode
        device = getattr(env.unwrapped, "device", None)
        self.device = device if isinstance(device, torch.device) else torch.device("cpu")
        name = self.specification.name
        site = Site(
            num_envs=env.num_envs,
            device=self.device,
            observation_space=env.single_observation_space,
            action_space=env.single_action_space,
            natural_observation_space=wrapping.natural_space(env, "single_observation_space"),
            unwrapped=env.unwrapped,
            position=wrapping.position(env, name),
        )
        self.perturbation = self._made(site)
        if self.perturbation.observation_space is not None:
            self.single_observation_space = self.perturbation.observation_space
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._all = torch.arange(env.num_envs, device=self.device)
        self._ended: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._size: torch.Tensor | None = None

    def _made(self, site: Site) -> Perturbation:
        return wrapping.IMPLEMENTATIONS[self.specification.name](self.specification, site)

    @property
    def dtype(self) -> Any:
        """The dtype of observations and rewards of one of this package's environments."""
        # Of a TorchVectorEnv, which Gymnasium's wrapper does not know.
        return self.env.dtype  # type: ignore[attr-defined]

    @property
    def max_episode_steps(self) -> int:
        """The time limit of one of this package's environments."""
        # As above.
        return self.env.max_episode_steps  # type: ignore[attr-defined]

    def render_one(self, row: int = 0) -> np.ndarray | None:
        """Return the picture of environment `row`."""
        # As above.
        return self.env.render_one(row)  # type: ignore[attr-defined]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return observations, perturbed where an episode begins, and the info with the realised sizes.

        With options["reset_mask"] the observations of the others are those returned last.
        """
        mask = (options or {}).get("reset_mask")
        if mask is not None and self._last is None:
            raise InvalidValueError("reset_mask was given before the first reset; call reset() once without it.")
        rows = None if mask is None else torch.as_tensor(mask, device=self.device)
        if seed is None and self.perturbation.draws:
            # A generator that cannot be used must be refused before the environment is reset.
            generator_words(self.env.unwrapped, self._all[:1])
        given: Any = None if options is None else dict(options)
        # Gymnasium declares fewer kinds of seeds than vector environments take.
        observation, info = self.env.reset(seed=seed, options=given)  # type: ignore[arg-type]
        rows = self._all if rows is None else rows.nonzero().squeeze(-1)
        with plain_tensors():
            flat = self._flat(observation)
            perturbed, size = self._start(rows, flat[rows], self._seeded(seed, rows))
            if mask is not None and self._last is not None and self._size is not None:
                perturbed = self._last.index_put((rows,), perturbed.to(self._last.dtype))
                size = self._size.index_put((rows,), size.to(self._size.dtype))
            if self._ended is not None:
                self._ended = self._ended.index_fill(0, rows, False)
            self._last, self._size = perturbed.clone(), size
            return self._like(perturbed, observation), {**info, **self._sizes(size, observation)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return observations, perturbed, rewards, terminations, truncations and the info with the realised sizes."""
        if self._last is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        perturbation = self.perturbation
        # Before the environment has accepted the action, only a perturbation of actions draws.
        kept = kept_generators(perturbation)
        with plain_tensors():
            try:
                applied, size = self._act(actions)
                perturbation.push()
                try:
                    observation, reward, terminated, truncated, info = self.env.step(applied)
                finally:
                    perturbation.pull()
            except Exception:
                restore_generators(perturbation, kept)
                raise
            perturbation.commit()
            perturbed, size, info = self._observe(observation, size, info)
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                done = terminated | truncated
                self._ended = torch.as_tensor(done, device=self.device).clone() if bool(done.any()) else None
            self._last, self._size = perturbed.clone(), size
            info = {**info, **self._sizes(size, observation)}
            return self._like(perturbed, observation), reward, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Undo what was changed in the environment, and close it."""
        self.perturbation.release()
        super().close(**kwargs)

    def _observe(
        self, observation: Any, acted: torch.Tensor | None, info: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return the perturbed observations (n, size), the sizes (n,) and the info with a perturbed final_obs."""
        flat = self._flat(observation)
        final = self._dense_final(observation, info)
        ended = self._ended if final is None else torch.as_tensor(info["_final_obs"], device=self.device)
        perturbed, size = self.perturbation.observe(flat if final is None else self._flat(final))
        size = size if acted is None else acted
        if final is not None:
            like, old = info["final_obs"], perturbed.clone()
            info = {**info, "final_obs": self._final_like(old, like, info["_final_obs"])}
            if isinstance(info.get("final_info"), dict):
                info["final_info"] = {**info["final_info"], **self._sizes(size.clone(), observation)}
        if ended is not None:
            rows = ended.nonzero().squeeze(-1)
            first, first_size = self._start(rows, flat[rows], None)
            perturbed = perturbed.index_put((rows,), first.to(perturbed.dtype))
            size = size.index_put((rows,), first_size.to(size.dtype))
        return perturbed, size, info

    def _start(
        self, rows: torch.Tensor, observation: torch.Tensor, seeded: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.perturbation.draws:
            self.perturbation.restart(rows, generator_words(self.env.unwrapped, rows), seeded)
        return self.perturbation.start(rows, observation)

    def _act(self, actions: Any) -> tuple[Any, torch.Tensor | None]:
        if self.specification.acts_on != "action":
            return actions, None
        applied, size = self.perturbation.act(wrapping.tensor_of("actions", actions, self.device))
        return self._like(applied, actions, shaped=True), size

    def _seeded(self, seed: Any, rows: torch.Tensor) -> torch.Tensor | None:
        if seed is None:
            return None
        if not isinstance(seed, (Sequence, np.ndarray)):
            return rows
        given = torch.tensor([one is not None for one in seed], device=self.device)
        return rows[given[rows]]

    def _flat(self, observation: Any) -> torch.Tensor:
        return wrapping.tensor_of("observations", observation, self.device).reshape(self.num_envs, -1)

    def _like(self, batch: torch.Tensor, like: Any, shaped: bool = False) -> Any:
        """Return a batch in the form of `like`, sharing no memory with anything kept."""
        batch = batch if shaped else batch.reshape(like.shape)
        return batch if isinstance(like, torch.Tensor) else batch.cpu().numpy().astype(np.asarray(like).dtype)

    def _sizes(self, size: torch.Tensor, like: Any) -> dict[str, Any]:
        name, place = self.specification.name, self.perturbation.site.position
        values = {"size": size.clone(), **self.perturbation.more()}
        tensors = isinstance(like, torch.Tensor)
        return {wrapping.info_key(name, place, e): v if tensors else v.cpu().numpy() for e, v in values.items()}

    @staticmethod
    def _dense_final(observation: Any, info: Mapping[str, Any]) -> Any:
        """Return the observations before the reset inside the step, for all environments, None if there was none."""
        final = info.get("final_obs")
        if not isinstance(final, np.ndarray) or final.dtype != object:
            return final
        dense = np.array(observation)
        for row in np.nonzero(info["_final_obs"])[0]:
            dense[row] = final[row]
        return dense

    def _final_like(self, perturbed: torch.Tensor, like: Any, mask: Any) -> Any:
        if not isinstance(like, np.ndarray) or like.dtype != object:
            return self._like(perturbed, like)
        rows = np.full(len(like), None, dtype=object)
        for row in np.nonzero(mask)[0]:
            rows[row] = perturbed[row].cpu().numpy().reshape(np.shape(like[row]))
        return rows
