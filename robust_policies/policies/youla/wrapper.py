"""An environment whose policy learns a Youla parameter: it reads the innovation and adds to a base controller.

A policy inside these wrappers cannot destabilise the linear model, whatever it learns, as long as it has a finite gain
and no actuator saturates; `policies.youla.base` has the equations, and `YoulaPolicy` runs the result outside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Space
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from robust_policies import checks
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.lqg import Estimator, LQGDesign
from robust_policies.control.lqg import design as lqg_design
from robust_policies.control.observers.injection import OutputInjection, check_plant, find_output_injection
from robust_policies.control.scope import scope_of
from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.perturb.wrapping import tensor_of
from robust_policies.envs.plant import Plant
from robust_policies.envs.wrappers import Changing, TensorWrapper
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from robust_policies.policies.youla.base import BaseController, YoulaOptions
from robust_policies.policies.youla.observed import ObserverController

READABLE = ("innovation", "reference")
OBSERVERS = ("linear", "injection")
_CLOSES_A_LOOP = ("output", "observation", "estimate", "state", "input", "action", "applied_input", "y", "u", "x")


class _Loop(Changing):
    """The base controllers of `count` environments: states, innovations and what was applied last."""

    def __init__(self, base: BaseController, count: int) -> None:
        self.base, self.count = base, count
        self.state = base.initial_state(count)
        self.innovation = base.u0.new_zeros(count, base.model.p)
        self.applied = base.u0.expand(count, -1).clone()
        self.seen: Tensor | None = None
        self.exits = self.saturations = base.u0.new_zeros(count, dtype=torch.int64)

    def begin(self, observation: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return what the policies read where episodes begin in `rows` (count,) bool, None: all; the others keep it."""
        state, applied = self.base.initial_state(self.count), self.base.u0.expand(self.count, -1)
        innovation = self.base.innovation(observation, state)
        seen = self.base.seen(innovation, observation)
        exits, saturations = torch.zeros_like(self.exits), torch.zeros_like(self.saturations)
        if rows is not None and self.seen is not None:
            chosen = rows.unsqueeze(-1)
            state, applied = torch.where(chosen, state, self.state), torch.where(chosen, applied, self.applied)
            innovation = torch.where(chosen, innovation, self.innovation)
            seen = torch.where(chosen, seen, self.seen)
            exits = torch.where(rows, exits, self.exits)
            saturations = torch.where(rows, saturations, self.saturations)
        self.exits, self.saturations = exits, saturations
        self.state, self.innovation, self.applied, self.seen = state, innovation, applied.clone(), seen
        return seen.clone()

    def command(self, youla: Tensor) -> Tensor:
        """Return the inputs to send, float64; nothing changes."""
        return self.base.command(self.innovation, youla, self.state)

    def proceed(self, sent: Tensor, observation: Tensor) -> Tensor:
        """Return what the policies read after `sent` led to `observation`."""
        self.applied, self.state = self.base.update(self.innovation, sent, self.state)
        self.innovation = self.base.innovation(observation, self.state)
        self.seen = seen = self.base.seen(self.innovation, observation)
        self.exits = self.exits + self.base.outside(self.base.estimate(self.innovation, self.state))
        self.saturations = self.saturations + self.base.saturated(sent)
        return seen.clone()

    def info(self) -> dict[str, Tensor]:
        """Return copies of the last applied inputs, the innovations and the estimates, in the plant's units."""
        estimate = self.base.estimate(self.innovation, self.state)
        return {
            "applied_input": self.applied.clone(),
            "innovation": self.innovation.clone(),
            "estimate": estimate,
            "region_exits": self.exits.clone(),
            "saturations": self.saturations.clone(),
        }


class YoulaWrapper(gymnasium.Wrapper, RecordConstructorArgs):
    """One environment whose action is the normalised Youla input and whose observation the normalised innovation.

    Args:
        env: an environment with Box spaces of vectors; one of this package's needs nothing else.
        model: the linear model; None: that of the environment's plant (`control.linearize.linearize_plant`).
        design: the base controller's gains for `model`; None: `control.lqg.design(model, estimator=estimator)`.
        estimator: "current" or "predictor", where no design is given.
        options: see `YoulaOptions`: reserve, limit, quantum, delay, reference, region; None: the defaults.
        observe: what the policy reads, of "innovation" and "reference".
        observer: "linear", of the model, or "injection": exact on a nonlinear plant of that form within `region`, which
            is needed then (`control.observers.find_output_injection`); model and estimator are the observer's own. Or
            an observer itself, with start, innovation and follow: that of `find_output_injection`, `LearnedObserver`.
        weights: Q, R, W or V of the base controller's design, where no design is given; those left out are its own.
        **chosen: single options by their names, in place of those in `options`: `YoulaWrapper(env, reserve=0.2)`.

    Actions beyond the largest Youla input are clipped. The info of reset and step holds "applied_input" (m,), the last
    input that the plant received, "innovation" (p,), not normalised, and "estimate" (n,) of the state, all float64 in
    the plant's units. At an episode's start the estimate begins at x0, and the applied input is u0. The monitor:
    "region_exits" and "saturations" count the steps of the episode so far at whose end the estimate was outside the
    region, and in which an input was at its limit.

    Raises:
        InvalidValueError: `observe` names what depends on the actions, which would close a loop that nothing
        guarantees, the environment has no plant and no model was given, or an option asks for too much.
        UnknownNameError: there is no option of this name.
        ShapeError: model, design and environment do not fit one another.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        model: LinearModel | None = None,
        design: LQGDesign | None = None,
        *,
        options: YoulaOptions | None = None,
        estimator: Estimator = "current",
        observe: Sequence[str] = READABLE,
        observer: Any = "linear",
        weights: Mapping[str, Any] | None = None,
        **chosen: Any,
    ) -> None:
        options = YoulaOptions.of(options, **chosen)
        given: dict[str, Any] = {"model": model, "design": design, "estimator": estimator, "observe": observe}
        given |= {"observer": observer, "weights": weights}
        # Each option by its name, so that a specification stays numbers and text.
        RecordConstructorArgs.__init__(self, **given, **vars(options))
        gymnasium.Wrapper.__init__(self, env)
        self.controller = _controller(env, env.observation_space, env.action_space, options, **given)
        self.observation_space, self.action_space = (
            self.controller.youla_observation_space,
            self.controller.youla_action_space,
        )
        self._loop = _Loop(self.controller, 1)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first normalised innovation (and reference), and info."""
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        with plain_tensors():
            seen = self._loop.begin(torch.as_tensor(np.asarray(observation))[None])
        return seen[0].numpy(), {**info, **self._info()}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Return the normalised innovation (and reference), reward, terminated, truncated and info.

        Raises:
            ShapeError, NonFiniteError: `action` is no Youla input (m,); nothing has changed then.
        """
        if self._loop.seen is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        try:
            given = np.asarray(action)
        except ValueError as error:
            raise ShapeError(f"action is not an array of numbers: {error}.") from error
        checks.shape("action", given, self.action_space.shape or ())
        with plain_tensors():
            youla = checks.finite_tensor("action", tensor_of("actions", given, torch.device("cpu")))
            sent = self._loop.command(youla[None])
            inner = sent[0].to(self.controller.inputs).numpy()
            observation, reward, terminated, truncated, info = self.env.step(inner)
            seen = self._loop.proceed(sent, torch.as_tensor(np.asarray(observation))[None])
        return seen[0].numpy(), reward, terminated, truncated, {**info, **self._info()}

    def _info(self) -> dict[str, Any]:
        return {name: value[0].numpy() for name, value in self._loop.info().items()}


class YoulaVectorWrapper(TensorWrapper):
    """`YoulaWrapper` for a `TorchVectorEnv`: the same arguments, and tensors with a leading dimension num_envs.

    The observers' states stay on the environment's device. An observer begins anew with its episode in every autoreset
    mode: in SAME_STEP, `final_obs` is the old episode's last innovation, `info["final_info"]` holds its info, and the
    rest describes the new episode, except `applied_input`, which is what was applied in this step.
    """

    def __init__(
        self,
        env: VectorEnv,
        model: LinearModel | None = None,
        design: LQGDesign | None = None,
        *,
        options: YoulaOptions | None = None,
        estimator: Estimator = "current",
        observe: Sequence[str] = READABLE,
        observer: Any = "linear",
        weights: Mapping[str, Any] | None = None,
        **chosen: Any,
    ) -> None:
        super().__init__(env)
        given: dict[str, Any] = {"model": model, "design": design, "estimator": estimator, "observe": observe}
        given |= {"observer": observer, "weights": weights}
        spaces, options = (env.single_observation_space, env.single_action_space), YoulaOptions.of(options, **chosen)
        self.controller = _controller(env, *spaces, options, **given).to(self.device)
        self.single_observation_space = self.controller.youla_observation_space
        self.single_action_space = self.controller.youla_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._loop = _Loop(self.controller, self.num_envs)
        self._ended: Tensor | None = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Return normalised innovations (and references) after a reset, and info; `reset_mask` resets some."""
        rows = self.reset_mask(options)
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        with plain_tensors():
            seen = self._loop.begin(observation, rows)
            self._ended = None if rows is None or self._ended is None else self._ended & ~rows
        return seen, {**info, **self._loop.info()}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return normalised innovations (and references), rewards, terminations, truncations and info.

        Raises:
            ShapeError, NonFiniteError: `actions` are no Youla inputs (num_envs, m); nothing has changed then.
        """
        loop = self._loop
        if loop.seen is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        with plain_tensors():
            sent = loop.command(self._checked(actions))
            observation, reward, terminated, truncated, info = self.env.step(sent.to(self.controller.inputs))
            final = info.get("final_obs")
            seen = loop.proceed(sent, observation if final is None else final)
            begun = self._ended
            if final is not None:
                begun = info["_final_obs"]
                old = {**info.get("final_info", {}), **loop.info()}
                info = {**info, "final_obs": seen, "final_info": old}
            applied = loop.applied
            if begun is not None:
                seen = loop.begin(observation, begun)
            outcome = {**info, **loop.info()}
            if final is not None:
                outcome["applied_input"] = applied.clone()
            ended = self.autoreset_mode is AutoresetMode.NEXT_STEP and self.some_ended(info)
            self._ended = terminated | truncated if ended else None
        return seen, reward, terminated, truncated, outcome

    def _checked(self, actions: Any) -> Tensor:
        youla = tensor_of("actions", actions, self.device)
        if not youla.dtype.is_floating_point:
            raise ShapeError(f"actions have dtype {youla.dtype}; expected a floating dtype such as float32.")
        checks.shape("actions", youla, (self.num_envs, self.controller.model.m))
        # Clipping would hide an infinite action from the environment's own look at them.
        if not self.base.trusts_actions and not bool(torch.isfinite(youla).all()):
            raise NonFiniteError("actions hold NaN or infinite values; expected finite numbers.")
        return youla


def youla_base(env: Any) -> BaseController:
    """Return the base controller of the Youla wrapper that `env`, Gymnasium's or Stable-Baselines3's, wears."""
    if (found := worn(env)) is not None:
        return found
    raise InvalidValueError(
        f"{env} wears no Youla wrapper; wrap the environment in YoulaWrapper or YoulaVectorWrapper."
    )


def worn(env: Any) -> BaseController | None:
    """Return the base controller of the Youla wrapper that `env` wears, or None if it wears none."""
    inner = env
    while inner is not None:
        if isinstance(inner, (YoulaWrapper, YoulaVectorWrapper)):
            return inner.controller
        several = getattr(inner, "envs", None)
        inner = several[0] if several else getattr(inner, "venv", None) or vars(inner).get("env")
    return None


def _controller(
    env: Any,
    observation_space: Space,
    action_space: Space,
    options: YoulaOptions,
    *,
    model: LinearModel | None,
    design: LQGDesign | None,
    estimator: Estimator,
    observe: Sequence[str],
    observer: Any,
    weights: Mapping[str, Any] | None,
) -> BaseController:
    """Return the base controller, of model, design and reference that were given or follow from the plant of `env`."""
    _check_reads(observe)
    own = not isinstance(observer, str)
    if own and not all(hasattr(observer, name) for name in ("start", "innovation", "follow")):
        raise InvalidValueError(
            f"observer is {observer!r}; expected {', '.join(OBSERVERS)}, or one with start, innovation and follow."
        )
    if not own and observer not in OBSERVERS:
        raise UnknownNameError.among("observer", observer, OBSERVERS)
    check_plant(observer, env)
    plant = getattr(env.unwrapped, "plant", None)
    if observer == "injection":
        if plant is None or model is not None:
            raise InvalidValueError("observer is 'injection', which is made of the plant of a task; leave model out.")
        injection = find_output_injection(plant, options.region, design, **{"estimator": estimator, **(weights or {})})
        return ObserverController(
            injection, injection.model, injection.design, observation_space, action_space, options
        )
    if isinstance(observer, OutputInjection) and model is None:
        model, found = observer.model, observer.design
        if design is None:
            design = lqg_design(model, **weights, estimator=estimator) if weights else found
        observer = observer.with_design(design)
    options = replace(options, reference=_reference(plant, model, options.reference))
    if model is None:
        if design is not None:
            raise InvalidValueError("A design was given without its model; give model=... too.")
        if plant is None:
            raise InvalidValueError(
                f"{env} has no plant of this package to linearise; give model=..., for instance of "
                "control.linearize.linearize_mujoco or from_matrices."
            )
        kept = [index for index in range(plant.observation_size) if index not in (options.reference or ())]
        if not kept:
            raise InvalidValueError(
                f"No action changes what {env} observes: it is an innovation already, and a policy that reads it needs "
                "no wrapper."
            )
        model = _measuring(linearize_plant(plant), kept)
    if design is None:
        design = lqg_design(model, **(weights or {}), estimator="predictor" if own else estimator)
    if own:
        return ObserverController(observer, model, design, observation_space, action_space, options)
    controller = BaseController(model, design, observation_space, action_space, options)
    controller.scope = scope_of(plant, model, options.region)
    return controller


def _reference(plant: Plant | None, model: LinearModel | None, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the indices of the reference, found by a trial where none are given and the model is the plant's own."""
    if plant is None or not (given or model is None):
        return given or ()
    free = uninfluenced(plant)
    for index in given or ():
        if index in range(plant.observation_size) and index not in free:
            raise InvalidValueError(
                f"reference holds {index}, {plant.output_names[index]!r}, which depends on the actions: a policy that "
                "reads it closes a second feedback loop, and no stability is guaranteed."
            )
    return free if given is None else given


def _measuring(model: LinearModel, kept: list[int]) -> LinearModel:
    """Return the model with the outputs `kept` only."""
    V = None if model.V is None else model.V[np.ix_(kept, kept)]
    names, angles = (model.output_names[i] for i in kept), (kept.index(i) for i in model.angles if i in kept)
    D, y0 = np.asarray(model.D)[kept], np.asarray(model.y0)[kept]
    return replace(model, C=model.C[kept], D=D, y0=y0, V=V, output_names=tuple(names), angles=tuple(angles))


def uninfluenced(plant: Plant) -> tuple[int, ...]:
    """Return the indices of the observations that no action changes, in a trial from a start state."""
    generator = torch.Generator().manual_seed(0)
    params = plant.prepare(plant.nominal())
    uniform = torch.rand(1, plant.reset_size, generator=generator, dtype=torch.float64)
    state = plant.initial(uniform, params).repeat(2, 1)
    low, high = (
        torch.as_tensor(bound, dtype=torch.float64).clamp(-1e3, 1e3) for bound in (plant.action_low, plant.action_high)
    )
    moved = torch.zeros(plant.observation_size, dtype=torch.bool)
    for _ in range(2 * plant.state_size):
        drawn = torch.rand(2, plant.action_size, generator=generator, dtype=torch.float64)
        state = plant.advance(state, low + (high - low) * drawn, params)
        one, other = plant.observe(state, params)
        moved |= one != other
    return tuple((~moved).nonzero().squeeze(-1).tolist())


def _check_reads(observe: Sequence[str]) -> None:
    names = [observe] if isinstance(observe, str) else list(observe)
    for name in names:
        if name in _CLOSES_A_LOOP:
            raise InvalidValueError(
                f"observe holds {name!r}, which depends on the actions: a policy that reads it closes a second "
                f"feedback loop, and no stability is guaranteed. Expected {' and '.join(READABLE)}."
            )
        if name not in READABLE:
            raise UnknownNameError.among("signal in observe", str(name), READABLE)
    if "innovation" not in names:
        raise InvalidValueError(f"observe is {names}; expected 'innovation' in it.")
