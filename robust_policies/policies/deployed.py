"""A policy that runs without a training library: predict, and the differentiable actor behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates import Certificate
from robust_policies.certificates.gain_search import running_map
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.multipliers import Multiplier
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.signals import BEFORE_NORMALISATION, GIVEN, RAW
from robust_policies.certificates.verify import running_model, running_neurons
from robust_policies.control.bounded import between
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    NonFiniteError,
    NotCertifiableError,
    ShapeError,
    UnknownNameError,
)
from robust_policies.networks import Cell
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.certify import certify_actor, observation_weights
from robust_policies.policies.observations import flat_size, read
from robust_policies.policies.peak import action_peaks
from robust_policies.policies.running import RunningPolicy, running_actor
from robust_policies.policies.running_arrays import PREFIX, check_arrays, named_arrays
from robust_policies.policies.spaces import choose, gaps, parameter_count, space_from_json, space_to_json
from robust_policies.policies.window import WindowCell, stored_cell

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class DeployedPolicy:
    """The actor of a trained policy with its spaces.

    Attributes:
        actor: module; actor(observations (time, batch, nu), state, starts) -> (mean actions (time, batch, na), state).
        observation_space, action_space: of the environment it was trained for; `observations` says in which order
            observations of several parts are read.
        log_std: (na,) of the Gaussian exploration, None if there is none to sample from.
        state_dependent_noise: it was trained with gSDE, so only its deterministic actions are stored.
        raw: whether what it reads is known to be what its environment's sensors give, with nothing else before its
            normalizer.
        kind: what a policy of this class is called on disk.
    """

    kind: ClassVar[str] = "recurrent_cell_policy"

    def __init__(
        self,
        actor: Actor,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        log_std: Tensor | None = None,
        *,
        state_dependent_noise: bool = False,
        raw: bool = False,
    ) -> None:
        size = flat_size(observation_space)
        if size != actor.cell.input_size:
            raise ShapeError(f"The cell reads {actor.cell.input_size} numbers and an observation has {size}.")
        numbers = parameter_count(action_space)
        if actor.head.output_size != numbers:
            raise ShapeError(
                f"The actor gives {actor.head.output_size} numbers and the action space {action_space} needs {numbers}."
            )
        if log_std is not None:
            checks.shape("log_std", log_std, (numbers,))
        self.actor = actor.eval().requires_grad_(False)
        self.observation_space = observation_space
        self.action_space = action_space
        self.log_std = None if log_std is None else log_std.detach().clone()
        self.state_dependent_noise = state_dependent_noise
        self.raw = raw

    @property
    def cell(self) -> Cell:
        """The recurrent cell."""
        return self.actor.cell

    @property
    def head(self) -> MeanHead:
        """What follows the cell."""
        return self.actor.head

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.actor.parameters()).device

    def to(self, device: str | torch.device) -> DeployedPolicy:
        """Return this policy after moving it; raises DeviceError."""
        target = checks.device(device)
        self.actor.to(target)
        self.log_std = None if self.log_std is None else self.log_std.to(target)
        return self

    def initial_state(self, batch_size: int = 1) -> np.ndarray:
        """Return the state (batch_size, nx) at an episode's start."""
        return self.cell.initial_state(batch_size).cpu().numpy()

    def certificate(self, weights: Sequence[float] | None = None) -> Certificate:
        """Return the certificate of the gain from what the policy reads, which it names, to its raw mean action.

        Of choices it is the gain to the logits.

        Args:
            weights: (nu,) the size of one unit of each observation, for a second gain in these units.

        Raises:
            NotCertifiableError: there is no such gain; the message names the reason.
        """
        unknown = GIVEN if self.actor.normalizer is None else BEFORE_NORMALISATION
        return certify_actor(
            self.actor,
            self.action_space,
            weights,
            reads=RAW if self.raw else unknown,
            state_dependent_noise=self.state_dependent_noise,
        )

    def peak(self, weights: Sequence[float] | None = None) -> dict[str, Any] | None:
        """Return how far each mean action may differ at any step, for ever, where every observation differs by little.

        Args:
            weights: (nu,) how far each observation differs at every step, in its own unit; None: 1 each.

        Returns the entry `peak` of a certificate: {"units": [nu], "gamma": [na], "method"}, None without a proof. It
        takes seconds, tens of them for a state of 16 and 64 neurons.
        """
        if not isinstance(self.action_space, spaces.Box) or self.state_dependent_noise:
            return None
        size = self.cell.input_size
        units = np.ones(size) if weights is None else observation_weights(weights, size)
        found = action_peaks(self.actor, units)
        return None if found is None else {"units": units.tolist(), "gamma": found[0].tolist(), "method": found[1]}

    def choice_radii(self, observations: Tensor) -> np.ndarray:
        """Return how far observations must move before another choice is the most likely, (time, batch).

        The l2 norm over all steps up to that one of the change of flat observations, of a policy without memory over
        that step alone: where it is smaller, the choice is the same. 0 where two logits are equal.

        Args:
            observations: (time, batch, nu), flat, from an episode's start on.

        Raises:
            NotCertifiableError: no gain to the logits is proven. InvalidValueError: the actions are no choices.
        """
        if isinstance(self.action_space, spaces.Box):
            raise InvalidValueError("The actions are a Box; only choices have a radius in which they stay the same.")
        certificate = self.certificate()
        if certificate.gamma_raw is None or certificate.choices is None:
            raise NotCertifiableError(f"No gain to the logits is proven: {certificate.claim}")
        with torch.no_grad():
            logits = running_map(self).run(observations.detach().cpu().double())
        share = certificate.choices["divisor"] * certificate.gamma_raw
        return (gaps(self.action_space, logits) / max(share, 1e-300)).numpy()

    def matrices(self) -> tuple[Matrices, Multiplier, Array]:
        """Return the explicit matrices from raw observation to raw mean action, and what is known of their neurons.

        The last two are a family of multipliers, and one of it to start a search from. Rounding is in the matrices'
        `error`.

        Raises:
            NotCertifiableError: it is no linear system around neurons; the message names the reason.
        """
        self._refuse_beside()
        model, family, theta = running_model(self)
        folded = self.actor.folded()
        return between(model, folded.inward, folded.outward), family, theta

    def neurons(self) -> Neurons | None:
        """Return the policy from raw observation to raw mean action around its single neurons, None if not known.

        Raises NotCertifiableError as `matrices`.
        """
        self._refuse_beside()
        found, folded = running_neurons(self), self.actor.folded()
        return None if found is None else found.mapped(lambda model: between(model, folded.inward, folded.outward))

    def running(self) -> RunningPolicy:
        """Return the policy in float64, and the loops that it closes."""
        return running_actor(self.actor, self._neurons)

    def _neurons(self) -> Neurons:
        """Return the cell around its single neurons; raises NotCertifiableError where something is in the way."""
        self._refuse_beside()
        found = running_neurons(self)
        if found is None:
            # What has no matrices either says why.
            self.matrices()
            raise NotCertifiableError(f"The neurons of {type(self.cell).__name__} are not known one by one.")
        return found

    def _refuse_beside(self) -> None:
        found = (
            ("an observation normalizer, which clips", self.actor.normalizer),
            ("tanh", self.head.squash),
            ("a window of past observations", isinstance(self.cell, WindowCell)),
        )
        for what, there in found:
            if there:
                raise NotCertifiableError(f"The policy has {what}, beside its cell; train without it.")

    def running_arrays(self) -> dict[str, Any]:
        """Return the arrays that decide what it does, by name."""
        return self.actor.state_dict()

    def searched(self) -> Any:
        """Return the map whose largest gain `certify` searches, None for none."""
        return self.actor

    def follow(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the mean actions (batch, na), and what gives the next state for the actions that were applied.

        Args:
            observation: (batch, nu), flat.
            state: (batch, nx), as the cell has it.

        Somebody else's actions (batch, na) may be applied; a policy without an observer does not see the difference.
        """
        mean, state = self.actor.step(observation, state)
        return mean, lambda _: state

    def monitored(self, observations: Tensor, actions: Tensor, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Return what a monitor counts in each episode, by name, (batch,) each; nothing for one without an observer.

        Args:
            observations: (time, batch, nu), what the policy read.
            actions: (time, batch, na), what it sent.
            lengths: (batch,) numbers of steps that count.
        """
        return {}

    def parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what describes the policy in JSON, and its tensors by name: what `from_parts` makes it of."""
        actor = self.actor
        content = {
            "cell": self.cell.config(),
            "dtype": str(next(self.cell.parameters()).dtype).removeprefix("torch."),
            "linear_head": actor.head.linear is not None,
            "action_scale": actor.head.scale is not None,
            "observation_scale": actor.body.scaling.scale is not None,
            "observation_offset": actor.body.scaling.offset is not None,
            "normalizer_clip": None if actor.normalizer is None else actor.normalizer.clip,
            "log_std": self.log_std is not None,
            "state_dependent_noise": self.state_dependent_noise,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            # Named only where they are there: files of policies without them stay as they were, byte for byte.
            **({"squash": True} if actor.head.squash else {}),
            **({"action_offset": True} if actor.head.offset is not None else {}),
            **({"exact_offset": True} if actor.body.scaling.exact else {}),
            **({"raw_observations": True} if self.raw else {}),
        }
        names, arrays = self._running()
        return {**content, "runtime": {"arrays": names}}, self._tensors() | arrays

    @classmethod
    def from_parts(cls, content: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> DeployedPolicy:
        """Return the policy of which `parts` made the parts.

        Args:
            content: the description.
            tensors: by name.
            source: the file of the tensors, for messages.

        Raises:
            CorruptFileError, ShapeError, NonFiniteError, UnknownNameError: the parts do not fit one another.
        """
        if content["dtype"] not in DTYPES:
            raise UnknownNameError.among("dtype", str(content["dtype"]), DTYPES)
        action_space = space_from_json(content["action_space"])
        cell = stored_cell(content["cell"])
        size, numbers = cell.input_size, parameter_count(action_space)
        scale, offset, action_scale = (
            1.0 if checks.flag(key, content[key]) else None
            for key in ("observation_scale", "observation_offset", "action_scale")
        )
        squash = checks.flag("squash", content.get("squash", False))
        linear = checks.flag("linear_head", content["linear_head"])
        centred = checks.flag("action_offset", content.get("action_offset", False))
        head = MeanHead(cell.output_size, numbers, linear, action_scale, 0.0 if centred else None, squash=squash)
        scaling = Scaling(size, scale, offset)
        actor = Actor(ScaledCell(cell, scaling), head).to(DTYPES[content["dtype"]])
        if checks.flag("exact_offset", content.get("exact_offset", False)) and scaling.offset is not None:
            scaling.offset = scaling.offset.double()
        if (clip := content["normalizer_clip"]) is not None:
            actor.normalizer = FrozenNormalizer(torch.zeros(size), torch.ones(size), clip)
        policy = DeployedPolicy(
            actor,
            space_from_json(content["observation_space"]),
            action_space,
            torch.zeros(numbers) if checks.flag("log_std", content["log_std"]) else None,
            state_dependent_noise=checks.flag("state_dependent_noise", content["state_dependent_noise"]),
            raw=checks.flag("raw_observations", content.get("raw_observations", False)),
        )
        policy._take({name: value for name, value in tensors.items() if not name.startswith(PREFIX)}, source)
        if "runtime" in content:
            names, arrays = policy._running()
            check_arrays(arrays, tensors, {"arrays": names}, content["runtime"], source)
        return policy

    def predict(
        self,
        observation: Any,
        state: np.ndarray | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (actions, next state (batch, nx)), as Stable-Baselines3's `predict` does.

        Args:
            observation: as the environment gives it, or a batch (n, *shape), of a Dict in every entry; the action has a
                batch dimension if this has.
            state: what the last call returned; None at the start.
            episode_start: (n,) bool or one bool; where True that entry's state is reset first.
            deterministic: the mean (most likely) action, or a sample of the stored exploration.

        Raises:
            ShapeError, NonFiniteError: the observation, state or episode_start does not fit.
        """
        values, single = self._checked(observation)
        hidden = self._hidden(state, episode_start, values.shape[0])
        with torch.no_grad():
            actions, hidden = self._act(torch.as_tensor(values, device=self.device), hidden, deterministic)
        return (actions[0] if single else actions), hidden.cpu().numpy()

    @property
    def _double(self) -> bool:
        """Whether observations are read in float64, in which a normaliser computes."""
        return self.actor.normalizer is not None

    def _act(self, observations: Tensor, state: Tensor, deterministic: bool) -> tuple[np.ndarray, Tensor]:
        """Return (actions (batch, *shape), next state) for a batch of flat observations."""
        numbers, state = self.actor.step(observations, state)
        return choose(self.action_space, numbers, self.log_std, deterministic), state

    def _hidden(self, state: Any, episode_start: Any, batch: int) -> Tensor:
        """Return the state (batch, nx) as the cell takes it, zero where an episode starts."""
        hidden = self.cell.initial_state(batch)
        if state is not None:
            array = np.asarray(state)
            if array.shape != (batch, self.cell.state_size):
                raise ShapeError(
                    f"state has shape {array.shape}; expected ({batch}, {self.cell.state_size}): pass what the last "
                    "predict returned for the same number of observations, or None."
                )
            hidden = torch.as_tensor(array, dtype=hidden.dtype, device=self.device)
        if episode_start is not None:
            starts = np.asarray(episode_start).astype(bool).reshape(-1)
            if starts.size not in (1, batch):
                raise ShapeError(
                    f"episode_start has {starts.size} entries; expected one for each of {batch} observations."
                )
            if starts.any():
                mask = torch.as_tensor(np.broadcast_to(starts, batch).copy(), device=self.device)
                hidden = hidden.masked_fill(mask.unsqueeze(-1), 0.0)
        return hidden

    def _checked(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Return the observations as numbers (batch, nu), and whether there was only one, without a batch dimension."""
        # An offset is subtracted in the observation's own precision.
        own = None if self.actor.body.scaling.offset is not None else np.float32
        return read(self.observation_space, observation, np.float64 if self._double else own)

    def _running(self) -> tuple[Any, dict[str, Tensor]]:
        """Return the names of the explicit arrays, nested as they are, and those that are no parameters by name."""
        with torch.no_grad():
            return named_arrays(self.actor.body.explicit(), self._tensors(), self._places())

    def _places(self) -> dict[int, str]:
        """Return the names of the tensors that are stored by the addresses of their memory."""
        return {value.data_ptr(): name for name, value in self.actor.state_dict().items() if value.numel()}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.actor.state_dict().items()}
        if self.log_std is not None:
            tensors["log_std"] = self.log_std.cpu().contiguous().clone()
        return tensors

    def _take(self, stored: dict[str, Tensor], source: Path) -> None:
        """Put stored weights into a policy that was built to hold them."""
        wanted = self._tensors()
        if missing := sorted(set(wanted) - set(stored)):
            raise CorruptFileError(f"{source} lacks {', '.join(missing)}; save the policy again.")
        if extra := sorted(set(stored) - set(wanted)):
            raise CorruptFileError(f"{source} holds {', '.join(extra)}, which the policy does not have; save it again.")
        for name, tensor in stored.items():
            if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
                raise ShapeError(
                    f"{name} in {source} is {tensor.dtype} {tuple(tensor.shape)}; expected {wanted[name].dtype} "
                    f"{tuple(wanted[name].shape)} as the json describes. Save the policy again."
                )
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"{name} in {source} holds NaN or infinite values; save a policy that has not diverged."
                )
        if self.log_std is not None:
            self.log_std = stored.pop("log_std")
        self.actor.load_state_dict(stored)
