"""A cell as a model of rsl_rl: actor or critic, named in its configuration by `module:Class`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks import CELLS
from robust_policies.policies.actor import MeanHead, Scaling
from robust_policies.policies.bridges.exported import TracedStep, UntracedStep
from robust_policies.policies.bridges.model import CellModel, CellOptions, copied
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.sb3.reading import reads_raw

try:
    from rsl_rl.models import MLPModel
    from rsl_rl.modules.distribution import GaussianDistribution
    from rsl_rl.utils import unpad_trajectories

    from robust_policies.envs.bridges.rsl_rl import RslRlVecEnv
except ImportError as error:
    raise InvalidValueError("RslRlCellModel needs rsl_rl; install it with: pip install rsl-rl-lib.") from error


class RslRlCellModel(MLPModel, CellModel):
    """Scaled, perhaps normalised observation -> cell -> linear head (or none): an actor, or a critic.

        cfg["actor"]["class_name"] = "robust_policies.policies.bridges:RslRlCellModel"
        cfg["actor"]["cell_kwargs"] = dict(state_size=16, features=32, hidden_sizes=(32, 32), gamma=5.0)

    Args:
        obs, obs_groups, obs_set, output_dim: as rsl_rl passes them.
        hidden_dims, activation: the cell's `hidden_sizes` and `activation` where it has these options and `cell_kwargs`
            leaves them out; else they count for nothing. Configurations of Isaac Lab and mjlab always have them.
        obs_normalization: rsl_rl's running mean and deviation before the scaling; part of the deployed policy.
        distribution_cfg: of an actor: rsl_rl's GaussianDistribution, whose deviation is in units of the action.
        options: `cell`, `cell_kwargs`, `cell_output_size`, `observation_scale`, `observation_offset`, `action_scale`,
            `action_offset`, `zero_init`, as `RecurrentCellPolicy` has them; scale and offset of the action are 1 and 0
            by default, for rsl_rl knows no limits of actions.

    The state is (1, n, nx), zero where an episode begins. A cell without a state is no recurrent model.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
    """

    def __init__(
        self,
        obs: Any,
        obs_groups: dict[str, list[str]],
        obs_set: str,
        output_dim: int,
        hidden_dims: Sequence[int] | None = None,
        activation: str | None = None,
        obs_normalization: bool = False,
        distribution_cfg: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        # The perceptron that rsl_rl makes is replaced below; `mlp` is what follows the latent.
        super().__init__(obs, obs_groups, obs_set, output_dim, [1], "relu", obs_normalization, distribution_cfg)
        given = self.distribution
        if given is not None and not (isinstance(given, GaussianDistribution) and given.input_dim == output_dim):
            raise InvalidValueError(
                f"distribution_cfg names a {type(given).__name__}; expected a GaussianDistribution: its deviation is "
                "no function of the observation, and its mean is what the cell gives."
            )
        chosen = CellOptions.of(options)
        of_cell = dict(chosen.cell_kwargs or {})
        known = inspect.signature(CELLS[chosen.cell]).parameters if chosen.cell in CELLS else ()
        for name, value in (("hidden_sizes", hidden_dims), ("activation", activation)):
            if value is not None and name in known:
                of_cell.setdefault(name, value)
        self.body, self.mlp = replace(chosen, cell_kwargs=of_cell).build(self.obs_dim, output_dim)
        self.is_recurrent = self.cell.state_size > 0
        self._state: Tensor | None = None

    @property
    def head(self) -> MeanHead:
        """What follows the cell; rsl_rl calls it `mlp`."""
        return self.mlp

    def get_latent(self, obs: Any, masks: Tensor | None = None, hidden_state: Any = None) -> Tensor:
        """Return the cell's outputs: (batch, ny) of one step, or (time, env, ny) of a rollout.

        Args:
            obs: observations by group: (batch, n) each, or padded trajectories (time, trajectory, n).
            masks: (time, trajectory) bool, which steps are no padding; None: one step from the state of the last.
            hidden_state: (1, trajectory, nx), in which the trajectories begin; None: zero.
        """
        inputs = super().get_latent(obs)
        if not self.is_recurrent:
            rows = inputs.reshape(-1, self.obs_dim)
            outputs, _ = self.body.step(rows, self.cell.initial_state(len(rows)))
            return outputs.reshape(*inputs.shape[:-1], -1)
        state = self._state if masks is None else hidden_state
        state = self.cell.initial_state(inputs.shape[-2]) if state is None else state[0]
        checks.shape("hidden_state", state, (inputs.shape[-2], self.cell.state_size))
        if state.is_inference() and not torch.is_inference_mode_enabled():
            # rsl_rl's rollouts leave such a state behind, and nothing can be differentiated through it.
            state = state.clone()
        if masks is None:
            outputs, state = self.body.step(inputs, state)
            self._state = state.unsqueeze(0)
            return outputs
        outputs, _ = self.body.run(inputs, state, None)
        return unpad_trajectories(outputs, masks)  # pyright: ignore[reportReturnType]

    def reset(self, dones: Tensor | None = None, hidden_state: Any = None) -> None:
        """Put the state (1, n, nx) to `hidden_state`, None for zero, where `dones` (n,) is not 0."""
        if dones is None:
            self._state = hidden_state
        elif self._state is not None:
            # Not in place: what was recorded as the state of a step stays what it was.
            self._state = torch.where(
                _column(dones), torch.zeros_like(self._state) if hidden_state is None else hidden_state, self._state
            )

    def get_hidden_state(self) -> Tensor | None:
        """Return the state (1, n, nx), None before the first step or without a memory."""
        return self._state

    def detach_hidden_state(self, dones: Tensor | None = None) -> None:
        """Cut the state off from what it came from, where `dones` (n,) is not 0 or everywhere."""
        if self._state is not None:
            loose = self._state.detach()
            self._state = loose if dones is None else torch.where(_column(dones), loose, self._state)

    def deployed(self, owner: Any = None, env: Any = None) -> DeployedPolicy:
        """Return a copy, on the CPU, that runs without rsl_rl; its normaliser, as it is now, is in the cell's scaling.

        Args:
            owner: the runner that has the model; `env` is by default its.
            env: the environment it acts in. Of an `RslRlVecEnv` the spaces are known, of another one the sizes.

        Raises:
            InvalidValueError: the model has no distribution, as a critic has none.
        """
        if not isinstance(self.distribution, GaussianDistribution):
            raise InvalidValueError("This model has no distribution_cfg, so it is no actor; deploy the actor.")
        env = getattr(owner, "env", None) if env is None else env
        actor = copied(self.body, self.head, scaling=self._scaling())
        reads, acts, raw = _free(self.obs_dim), _free(self.head.output_size), False
        if isinstance(env, RslRlVecEnv):
            acts = env.env.single_action_space
            if self.obs_groups == ["policy"]:
                reads, raw = env.env.single_observation_space, reads_raw(env.env)
        return DeployedPolicy(actor, reads, acts, self._log_std(self.distribution), raw=raw)

    def as_jit(self) -> nn.Module:
        """Return the deterministic actor for rsl_rl's TorchScript file: one observation (1, nu) -> action (1, na)."""
        return TracedStep(self.deployed().actor)

    def as_onnx(self, verbose: bool = False) -> nn.Module:
        """Return the deterministic actor for rsl_rl's ONNX file: (obs (1, nu), h_in (1, 1, nx)) -> (actions, h_out)."""
        return UntracedStep(self.deployed().actor)

    def _scaling(self) -> Scaling:
        """Return the scaling with the normaliser in it."""
        own = self.body.scaling
        scale, offset = (None if part is None else part.detach().cpu().double() for part in (own.scale, own.offset))
        if self.obs_normalization:
            running: Any = self.obs_normalizer
            mean, unit = running.mean.cpu().double(), running.std.cpu().double() + running.eps
            scale, offset = unit if scale is None else unit * scale, mean if offset is None else mean + unit * offset
        return Scaling(self.obs_dim, scale, offset)

    @staticmethod
    def _log_std(given: GaussianDistribution) -> Tensor:
        # The first of rsl_rl 5 have no limits.
        low, high = getattr(given, "std_range", (1e-6, 1e6))
        std = given.std_param if given.std_type == "scalar" else given.log_std_param.exp()
        return std.detach().cpu().clamp(low, high).log()


def _column(dones: Tensor) -> Tensor:
    return (dones.reshape(-1, 1) != 0).unsqueeze(0)


def _free(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)
