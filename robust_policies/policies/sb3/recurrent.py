"""Policies for sb3-contrib's RecurrentPPO whose actor (and critic) are cells of this package."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.certificates import Certificate
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import LBDN, Cell, make_cell
from robust_policies.networks.perceptron import layers
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling, mean_head
from robust_policies.policies.adam import adam
from robust_policies.policies.observations import encode, is_image, parts_of
from robust_policies.policies.sb3.choices import from_zero, padded, starting
from robust_policies.policies.sb3.deploy import certify_policy, reads_flat
from robust_policies.policies.spaces import parameter_count

CRITICS = ("own", "shared", "mlp")
_UPSTREAM_LSTM = {"lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs"}


class RecurrentCellPolicy(RecurrentActorCriticPolicy):
    """Actor-critic policy: scaled observation -> cell -> linear head (or none) -> mean action; log-std a free vector.

    Args:
        observation_space, action_space, lr_schedule: as Stable-Baselines3 passes them. Observations are read flat:
            choices one-hot, the entries of a Dict in the order of its keys (`policies.observations`).
        cell: one of `networks.CELLS`.
        cell_kwargs: its options, e.g. dict(state_size=16, features=32, hidden_sizes=(32, 32), gamma=5.0).
        critic: "own" (a second cell), "shared" (reads the actor's cell output and the features, without gradient into
            them) or "mlp" (memoryless). All end in the MLP `net_arch["vf"]`. Or dict(cell="lbdn", gamma=..., ...), the
            options of an LBDN: it is the whole value, memoryless, whose gain from the scaled observation is at most
            gamma whatever is learnt.
        critic_kwargs: for an own critic: `cell`, `output_size` (64) and that cell's options; by default the actor's
            cell without its guarantee, for a critic needs none.
        cell_output_size: None: the cell's output is the mean action (or the logits); else a linear head follows.
        observation_scale, observation_offset: the cell's input is (observation - offset) / scale; fixed.
        action_scale, action_offset: fixed factor on the mean action, and what is added then. None: where both are, half
            of the range and the middle of a finite Box that is not symmetric about 0; 1 and 0 else (`mean_head`).
        zero_init: the mean action is the offset at first, whatever the observation (the usual start of PPO).
        net_arch: layers of the critic's MLP: dict(vf=[64, 64]) or a list.
        kwargs: further options of sb3-contrib's recurrent policy, except those of its LSTM.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an option is wrong; the message says which and why.
    """

    lstm_actor: ScaledCell
    lstm_critic: ScaledCell | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        cell: str = "r2dn",
        cell_kwargs: Mapping[str, Any] | None = None,
        critic: str | Mapping[str, Any] = "own",
        critic_kwargs: Mapping[str, Any] | None = None,
        cell_output_size: int | None = None,
        observation_scale: Any = None,
        observation_offset: Any = None,
        action_scale: Any = None,
        action_offset: Any = None,
        zero_init: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_options(kwargs)
        if isinstance(critic, Mapping):
            critic = _bounded(critic, net_arch)
        elif critic not in CRITICS:
            raise UnknownNameError.among("critic", critic, CRITICS)
        if critic != "own" and critic_kwargs:
            raise InvalidValueError(
                f"critic_kwargs is {dict(critic_kwargs)} for the critic {critic!r}, which has no cell of its own; "
                "leave it out, or give the width of its layers as net_arch=dict(vf=[...])."
            )
        self._options: dict[str, Any] = {
            "cell": cell,
            "cell_kwargs": dict(cell_kwargs or {}),
            "critic": critic,
            "critic_kwargs": dict(critic_kwargs or {}),
            "cell_output_size": cell_output_size,
            "observation_scale": observation_scale,
            "observation_offset": observation_offset,
            "action_scale": action_scale,
            "action_offset": action_offset,
            "zero_init": zero_init,
        }
        kwargs["features_extractor_class"] = _extractor(observation_space, kwargs)
        self._share_features = kwargs.get("share_features_extractor", True)
        if critic == "shared" and not self._share_features:
            raise InvalidValueError("critic='shared' needs share_features_extractor=True; or use critic='own'.")
        kind = kwargs.get("optimizer_class", torch.optim.Adam)
        if kind is torch.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            # As Stable-Baselines3 has it for this class alone.
            kwargs["optimizer_kwargs"] = {"eps": 1e-5}
        # Stable-Baselines3 makes an optimizer too, of parameters that are replaced here.
        kwargs["optimizer_class"] = optimizer = adam(kind, kwargs.get("optimizer_kwargs") or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            _value_layers(net_arch),
            lstm_hidden_size=1,
            shared_lstm=critic == "shared",
            enable_critic_lstm=critic == "own",
            **kwargs,
        )
        self.action_dist = starting(action_space, self.action_dist)
        self._replace_cells()
        self.optimizer_class = kind
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def cell(self) -> Cell:
        """The actor's cell."""
        return self.lstm_actor.cell

    @property
    def actor(self) -> Actor:
        """The deterministic actor, features (a flat observation) -> mean action; it shares this policy's weights."""
        # Stable-Baselines3 declares other modules, in whose place `_replace_cells` and `_build` put these.
        return Actor(cast(ScaledCell, self.lstm_actor), cast(MeanHead, self.action_net))

    def certificate(self, env: VecEnv | None = None, weights: Sequence[float] | None = None) -> Certificate:
        """Return the certificate of the gain from what the policy reads to its raw mean action.

        The certificate's `signals` and claim name what that is. Alone, a policy does not know what stands between it
        and its environment's sensors, such as a VecNormalize: the certificate is of observations as it is given them.

        Args:
            env: the environment the policy acts in: a VecNormalize in it, once frozen, is part of the chain, and the
                certificate is of raw observations.
            weights: (nu,) the size of one unit of each observation, for a second gain in these units.

        Raises:
            NotCertifiableError: there is no such gain; the message names the reason.
        """
        return certify_policy(self, env, weights)

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        """Return the features of observations; float64 ones stay so where an offset is subtracted from them.

        Choices among the observations may begin anywhere.
        """
        if not self._keeps(obs):
            return super().extract_features(from_zero(self.observation_space, obs), features_extractor)
        flat = self._flat(obs)
        return flat if self.share_features_extractor else (flat, flat)

    def get_distribution(
        self, obs: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor
    ) -> tuple[Distribution, tuple[Tensor, ...]]:
        """Return the distribution of actions for observations (batch, n), and the next states (1, batch, nx) each."""
        if not self._keeps(obs):
            return super().get_distribution(from_zero(self.observation_space, obs), lstm_states, episode_starts)
        latent, states = self._process_sequence(self._flat(obs), lstm_states, episode_starts, self.lstm_actor)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent)), states

    def predict_values(self, obs: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor) -> Tensor:
        """Return the values (batch, 1) of observations."""
        if not self._keeps(obs):
            return super().predict_values(from_zero(self.observation_space, obs), lstm_states, episode_starts)
        flat = self._flat(obs)
        if self.lstm_critic is not None or self.shared_lstm:
            reader = self.lstm_actor if self.lstm_critic is None else self.lstm_critic
            latent = self._process_sequence(flat, lstm_states, episode_starts, reader)[0]
        else:
            latent = cast(nn.Module, self.critic)(flat)
        return self.value_net(self.mlp_extractor.forward_critic(latent))

    def _keeps(self, obs: Any) -> bool:
        """Whether Stable-Baselines3's cast of the observations to float32 is to be left out.

        What an observation shows far from zero would be lost before the offset is subtracted. Its buffers hold
        float64 where the observation space does.
        """
        seen = obs.values() if isinstance(obs, Mapping) else [obs]
        double = any(isinstance(part, Tensor) and part.dtype == torch.float64 for part in seen)
        return double and self._options["observation_offset"] is not None and reads_flat(self.features_extractor)

    def _flat(self, obs: Any) -> Tensor:
        """Return observations (batch, nu) in their own precision."""
        return encode(self.observation_space, obs, precise=True)

    def evaluate_actions(
        self, obs: Tensor, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values, log-probabilities, entropies) of stored actions, (batch,) each.

        Those of a MultiBinary space come from the buffer as integers, of which no log-probability can be computed.
        """
        if isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.float()
        obs, actions = padded(self.observation_space, obs), padded(self.action_space, actions)
        return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    def _build_mlp_extractor(self) -> None:
        # Of MultiDiscrete observations Stable-Baselines3 has NumPy's number, which no JSON holds.
        self.features_dim = int(self.features_dim)
        outputs = self._options["cell_output_size"]
        if outputs is None:
            outputs = parameter_count(self.action_space)
        outputs = checks.positive_int("cell_output_size", outputs)
        critic_input = {
            "own": self._options["critic_kwargs"].get("output_size", 64),
            "shared": outputs + self.features_dim,
        }.get(str(self._options["critic"]), self.features_dim)
        checks.positive_int("output_size of critic_kwargs", critic_input)
        layers = [] if isinstance(self._options["critic"], dict) else cast("dict[str, list[int]]", self.net_arch)["vf"]
        # Another module than Stable-Baselines3 declares, with the methods that it calls.
        self.mlp_extractor = cast(Any, _Heads(outputs, critic_input, layers, self.activation_fn))

    def _replace_cells(self) -> None:
        options = self._options
        heads: Any = self.mlp_extractor

        def scaling() -> Scaling:
            return Scaling(self.features_dim, options["observation_scale"], options["observation_offset"])

        actor = make_cell(options["cell"], self.features_dim, heads.latent_dim_pi, **options["cell_kwargs"])
        linear = options["cell_output_size"] is not None
        scale, offset = options["action_scale"], options["action_offset"]
        self.action_net = mean_head(self.action_space, heads.latent_dim_pi, linear, scale, offset)
        if options["zero_init"] and options["cell_output_size"] is None:
            actor.zero_output_()
        self.lstm_actor = ScaledCell(actor, scaling())
        if options["critic"] == "own":
            self.lstm_critic = ScaledCell(self._critic_cell(heads.critic_input), scaling())
        elif options["critic"] != "shared":
            self.critic = scaling()
        if isinstance(options["critic"], dict):
            given = {key: value for key, value in options["critic"].items() if key != "cell"}
            self.value_net = cast(Any, LBDN(self.features_dim, output_size=1, **given))
        both = [module for module in (self.lstm_actor, self.lstm_critic) if module is not None]
        width = max(module.cell.state_size for module in both)
        for module in both:
            module.hidden_size = width
        self.lstm_actor.with_inputs = options["critic"] == "shared"
        self.lstm_hidden_state_shape = (1, 1, width)
        self.lstm_output_dim = heads.latent_dim_pi

    def _critic_cell(self, outputs: int) -> Cell:
        given = dict(self._options["critic_kwargs"])
        given.pop("output_size", None)
        name = given.pop("cell", self._options["cell"])
        if name == self._options["cell"]:
            inherited = {k: v for k, v in self._options["cell_kwargs"].items() if k not in {"gamma", "guarantee"}}
            given = {**inherited, **given}
        return make_cell(name, self.features_dim, outputs, **given)

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (outputs (batch, ny), states) of the cell; only the first of the two states (1, n_seq, width) is used.

        sb3-contrib begins a training sequence at every episode start, so a reset needs masking once, before the scan.
        Flags later in a sequence, which others may pass, are given to the scan.
        """
        stored = lstm_states[0]
        n_seq, width = stored.shape[1:]
        size = lstm.cell.state_size
        state = stored[0, :, :size].to(next(lstm.parameters()).dtype)
        if features.shape[0] == n_seq:
            state = state.masked_fill(episode_starts.reshape(n_seq, 1) != 0, 0.0)
            outputs, state = lstm.step(features, state)
        else:
            inputs = features.reshape(n_seq, -1, lstm.input_size).swapaxes(0, 1)
            starts = episode_starts.reshape(n_seq, -1).swapaxes(0, 1) != 0
            state = state.masked_fill(starts[0].unsqueeze(-1), 0.0)
            outputs, state = lstm.run(inputs, state, starts if bool(starts[1:].any()) else None)
            outputs = outputs.swapaxes(0, 1).flatten(0, 1)
        if lstm.with_inputs:
            outputs = torch.cat((outputs, lstm.scaling(features)), dim=-1)
        state = torch.nn.functional.pad(state, (0, width - size)) if width > size else state
        return outputs, (state.unsqueeze(0), lstm_states[1])

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self._options, share_features_extractor=self._share_features)
        return data


class RecurrentCellCnnPolicy(RecurrentCellPolicy):
    """`RecurrentCellPolicy` on images: the cell reads the features of a NatureCNN."""

    def __init__(self, *args: Any, features_extractor_class: type = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class RecurrentCellMultiInputPolicy(RecurrentCellPolicy):
    """`RecurrentCellPolicy` on dict observations: the cell reads the features of a CombinedExtractor."""

    def __init__(self, *args: Any, features_extractor_class: type = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class _Heads(nn.Module):
    """What stands between cell and output layers: nothing for the actor, an MLP for the critic."""

    def __init__(self, actor_input: int, critic_input: int, layers: list[int], activation: type[nn.Module]) -> None:
        super().__init__()
        mlp = MlpExtractor(critic_input, {"pi": [], "vf": layers}, activation)
        self.value_net = mlp.value_net
        self.critic_input = critic_input
        self.latent_dim_pi = actor_input
        self.latent_dim_vf = mlp.latent_dim_vf

    def forward_actor(self, latent: Tensor) -> Tensor:
        """Return the cell's output; a shared critic's extra columns are cut off."""
        return latent[..., : self.latent_dim_pi]

    def forward_critic(self, latent: Tensor) -> Tensor:
        """Return the critic's last hidden layer."""
        return layers(self.value_net, latent)


def _extractor(space: spaces.Space, given: Mapping[str, Any]) -> type:
    """Return the features extractor for a space: the one that was given, or one that only flattens.

    Raises:
        InvalidValueError: the space cannot be read so; the message says why.
    """
    if is_image(space) and given.get("features_extractor_class", FlattenExtractor) is FlattenExtractor:
        if given.get("normalize_images", True):
            raise InvalidValueError(
                f"The observations are images of shape {space.shape}; RecurrentCellPolicy reads vectors, and no gain "
                "of a cell is about pixels: use RecurrentCellCnnPolicy and keep its zip."
            )
    flat = CombinedExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    extractor = given.get("features_extractor_class", flat)
    if "features_extractor_class" not in given or extractor is FlattenExtractor:
        parts_of(space)
    if isinstance(space, spaces.Dict) and extractor is FlattenExtractor:
        raise InvalidValueError(
            f"FlattenExtractor cannot read a Dict of {', '.join(map(str, space.spaces))}; leave "
            "features_extractor_class out: the entries are then flattened in the order of the keys."
        )
    return extractor


def _bounded(critic: Mapping[str, Any], net_arch: Any) -> dict[str, Any]:
    """Return the options of a critic of bounded gain with its defaults; raises InvalidValueError, UnknownNameError."""
    for key in critic:
        if key not in (known := ("cell", "gamma", "hidden_sizes", "activation")):
            raise UnknownNameError.among("key of critic", str(key), known)
    if critic.get("cell") != "lbdn" or "gamma" not in critic:
        raise InvalidValueError(
            f"critic is {dict(critic)}; expected dict(cell='lbdn', gamma=NUMBER, ...): no other cell bounds a value."
        )
    if net_arch is not None:
        raise InvalidValueError(f"net_arch is {net_arch!r} for a critic of lbdn; give its hidden_sizes instead.")
    return {"hidden_sizes": [64, 64], **critic}


def _value_layers(net_arch: Any) -> dict[str, list[int]]:
    if net_arch is None:
        return {"pi": [], "vf": [64, 64]}
    layers = net_arch if isinstance(net_arch, Mapping) else {"vf": net_arch}
    if layers.get("pi"):
        raise InvalidValueError(
            f"net_arch has pi={layers['pi']}; the actor is the cell and its linear head: enlarge the cell instead."
        )
    for key in layers:
        if key not in {"pi", "vf"}:
            raise UnknownNameError.among("part of net_arch", key, {"pi", "vf"})
    widths = [checks.positive_int("an entry of net_arch", width) for width in layers.get("vf", [64, 64])]
    return {"pi": [], "vf": widths}


def _check_options(given: Mapping[str, Any]) -> None:
    known = set(inspect.signature(RecurrentActorCriticPolicy.__init__).parameters) - _UPSTREAM_LSTM - {"self"}
    own = {k for k, p in inspect.signature(RecurrentCellPolicy.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name in _UPSTREAM_LSTM:
            raise InvalidValueError(
                f"{name} is an option of sb3-contrib's LSTM; use cell, cell_kwargs and critic instead."
            )
        if name not in known:
            raise UnknownNameError.among("policy option", name, known | own)
