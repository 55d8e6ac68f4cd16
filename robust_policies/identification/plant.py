"""An identified model, or an ensemble of them, as a task: batched, differentiable, with a band of uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import Tensor

from robust_policies.certificates.certificate import digest
from robust_policies.envs.plant import NonNegativeNumber, Number, Params, Plant, PositiveNumber, Section, TaskFile
from robust_policies.errors import CorruptFileError, InvalidValueError, NotCertifiableError
from robust_policies.identification.loop import ModelLoop, prove_model_loop
from robust_policies.identification.model import IdentifiedModel, load_model
from robust_policies.policies import DeployedPolicy

STATES = "states.safetensors"
"""Of a model's folder, for starts: "states" (n, nx) of its training, "begins" (records, nx) where its records begin."""
_STARTS = {"anywhere": "states", "beginnings": "begins"}
# Where the training's range of an input is not known, actions reach so many deviations from its mean.
_REACH = 3.0


class Limits(Section):
    """Actions are clipped to [action_low, action_high]; null: the range of each input in the training."""

    action_low: list[Number] | None = None
    action_high: list[Number] | None = None


class Cost(Section):
    """A step costs sum q ((y - setpoint) / y's scale)^2 + sum r ((u - u's offset) / u's scale)^2 + band * spread^2."""

    outputs: list[NonNegativeNumber] | None = Field(default=None, description="q; null: 1 each")
    actions: list[NonNegativeNumber] | None = Field(default=None, description="r; null: 0.01 each")
    setpoint: list[Number] | None = Field(default=None, description="in raw units; null: the training's mean")
    band: NonNegativeNumber = Field(default=0.0, description="weight of the members' spread, in scales of the outputs")


class IdentifiedTask(TaskFile):
    """The task.yaml of an identified model."""

    model: list[str] = Field(min_length=1, description="the folder of an identified model, or several: model=DIR")
    # The model's own; the base class demands one.
    time_step: PositiveNumber | None = None  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    member: Literal["mean", "each"] = Field(
        default="mean", description="mean: outputs are the members' mean; each: an episode is of one member"
    )
    starts: Literal["anywhere", "beginnings"] = Field(
        default="anywhere", description="in the training's records, or where they begin"
    )
    limits: Limits = Limits()
    cost: Cost = Cost()
    noise: list[NonNegativeNumber] | None = Field(default=None, description="deviation of each output's noise")

    @field_validator("model", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else [str(one) for one in value]


class IdentifiedPlant(Plant):
    """x+ = f(x, u) of each member, all with the same input; y = g(x, u of the step before).

    An observation is what a sensor reads just before the next input acts: of the state now and the input held until
    now. The state is the members' states side by side, that input in the model's scale, and with `member: each` the
    number of the episode's.
    """

    kind = "identified"
    Task = IdentifiedTask
    parameter_units: Mapping[str, str] = {}

    def __init__(self, task: IdentifiedTask, folder: Path | None = None) -> None:
        self.models = [load_model(path) for path in task.model]
        first, others = self.models[0].signals, [model.signals for model in self.models[1:]]
        for path, other in zip(task.model[1:], others, strict=True):
            same = ("inputs", "outputs", "sample_time")
            if any(getattr(other, name) != getattr(first, name) for name in same):
                raise InvalidValueError(f"model {path} has other signals than {task.model[0]}; expected the same.")
        if task.time_step is not None and abs(task.time_step / first.sample_time - 1) > 1e-9:
            raise InvalidValueError(
                f"time_step is {task.time_step}; expected {first.sample_time}, the model's, or none."
            )
        super().__init__(task, folder)
        self.time_step = first.sample_time
        self.signals, self.choose = first, task.member == "each"
        nu, ny = len(first.inputs), len(first.outputs)
        self.sizes = [model.cell.state_size for model in self.models]
        self.inner = sum(self.sizes)
        self.state_size = self.inner + nu + self.choose
        self.observation_size, self.reset_size = ny, 1 + self.choose
        self.state_names = (
            *(f"model {k} state {i}" for k, size in enumerate(self.sizes) for i in range(size)),
            *(f"{name} held" for name in first.inputs),
            *(("member",) if self.choose else ()),
        )
        self.output_names, self.action_names = first.outputs, first.inputs
        self.action_low, self.action_high = self._limits(task.limits)
        self.observation_high = np.full(ny, np.inf)
        self.observation_low = -self.observation_high
        self.noise = self._sized("noise", task.noise, ny, 0.0)
        self.measurement_noise_size = ny if self.noise.any() else 0
        self.q, self.r = (
            self._sized("cost.outputs", task.cost.outputs, ny, 1.0),
            self._sized("cost.actions", task.cost.actions, nu, 0.01),
        )
        self.setpoint = self._sized("cost.setpoint", task.cost.setpoint, ny, first.output_offset)
        self.spread_weight = task.cost.band
        self.starts = self._starts(task.model, task.starts)
        self._ready: dict[tuple[torch.dtype, torch.device], list[Any]] = {}

    @property
    def sha256(self) -> str:
        """Of the numbers that the models compute with."""
        return digest({str(k): model.sha256 for k, model in enumerate(self.models)})

    def prove_loop(self, policy: DeployedPolicy) -> ModelLoop:
        """Return what is proven of a policy in the loop with the model; raises as `loop.prove_model_loop`.

        An ensemble is refused, and a plant made of this class, which may step the model otherwise.
        """
        if type(self) is not IdentifiedPlant:
            raise NotCertifiableError(f"the task's plant is {type(self).__name__}, which may step the model otherwise.")
        if len(self.models) != 1:
            raise NotCertifiableError(f"the task is an ensemble of {len(self.models)} models; expected one.")
        return prove_model_loop(policy, self.models[0])

    def _limits(self, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        s, nu = self.signals, len(self.signals.inputs)
        middle, reach = np.asarray(s.input_offset), _REACH * np.asarray(s.input_scale)
        known = np.asarray(s.input_range or np.stack((middle - reach, middle + reach), 1), float)
        low = self._sized("limits.action_low", limits.action_low, nu, known[:, 0])
        high = self._sized("limits.action_high", limits.action_high, nu, known[:, 1])
        if not (low < high).all():
            raise InvalidValueError(
                f"limits are {low.tolist()} to {high.tolist()}; expected action_low below action_high."
            )
        return low, high

    def _sized(self, name: str, given: Sequence[float] | None, size: int, default: Any) -> np.ndarray:
        if given is not None and len(given) != size:
            raise InvalidValueError(f"{name} has {len(given)} number(s); expected {size}.")
        return np.broadcast_to(np.asarray(default if given is None else given, float), (size,)).copy()

    def _starts(self, folders: Sequence[str], where: str) -> torch.Tensor:
        """Return starts (n, states of all members): of their trainings, or the one of no measurement."""
        parts, name = [], _STARTS[where]
        for folder, model in zip(folders, self.models, strict=True):
            path = Path(folder) / STATES
            try:
                found = safetensors.torch.load(path.read_bytes())[name].double() if path.is_file() else None
            except (SafetensorError, KeyError) as error:
                raise CorruptFileError(
                    f"{path} has no {name!r} that can be read ({error}); identify the model again."
                ) from error
            with torch.no_grad():
                parts.append(model.default_state(1).double() if found is None else found)
        count = min(len(part) for part in parts)
        return torch.cat([part[:count] for part in parts], 1)

    def _cells(self, state: Tensor) -> list[Any]:
        """Return (cell, explicit arrays) of each member in a state's number type, on its device."""
        key = state.dtype, state.device
        if key not in self._ready:
            self._ready[key] = []
            for model in self.models:
                cell = model.cell.double_copy().to(dtype=state.dtype, device=state.device)
                with torch.no_grad():
                    self._ready[key].append((cell, cell.explicit()))
        return self._ready[key]

    def __getstate__(self) -> dict[str, Any]:
        """Arrays of other number types are made again."""
        return {**self.__dict__, "_ready": {}}

    def _numbers(self, name: str, like: Tensor) -> Tensor:
        values = getattr(self.signals, name, None)
        return torch.as_tensor(getattr(self, name) if values is None else values, dtype=like.dtype, device=like.device)

    def _clipped(self, action: Tensor, like: Tensor) -> Tensor:
        """Return the action within its limits, in the model's scale."""
        low, high = self._numbers("action_low", like), self._numbers("action_high", like)
        raw = torch.minimum(torch.maximum(action.to(like.dtype), low), high)
        return (raw - self._numbers("input_offset", like)) / self._numbers("input_scale", like)

    def _steps(self, inputs: Tensor, state: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (output (..., ny), next state (..., nx)) of each member, scaled, for scaled inputs (..., nu)."""
        parts = state[..., : self.inner].split(self.sizes, -1)
        flat = inputs.reshape(-1, inputs.shape[-1])
        found = []
        for (cell, explicit), part in zip(self._cells(state), parts, strict=True):
            output, following = cell.step(explicit, flat, part.reshape(-1, part.shape[-1]))
            found.append((output.reshape(*state.shape[:-1], -1), following.reshape(part.shape)))
        return found

    def advance(
        self,
        state: Tensor,
        action: Tensor,
        params: Params,
        noise: Tensor | None = None,
        disturbance: Tensor | None = None,
    ) -> Tensor:
        """Return the state (..., nx) one step later; the action (..., nu) is in raw units, clipped."""
        inputs = self._clipped(action, state)
        parts = [following for _, following in self._steps(inputs, state)]
        return torch.cat((*parts, inputs, state[..., self.inner + inputs.shape[-1] :]), -1)

    def members(self, state: Tensor) -> Tensor:
        """Return what each member gives (..., members, ny) in raw units, at states (..., nx)."""
        held = state[..., self.inner : self.inner + self.action_size]
        scaled = torch.stack([output for output, _ in self._steps(held, state)], -2)
        return scaled * self._numbers("output_scale", state) + self._numbers("output_offset", state)

    def band(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the largest of the members' outputs (..., ny) at states (..., nx), raw: the uncertainty.

        What models of the same data disagree about is not known from it; where they agree they may still be wrong.
        """
        members = self.members(state)
        return members.amin(-2), members.amax(-2)

    def _output(self, state: Tensor, members: Tensor) -> Tensor:
        if not self.choose:
            return members.mean(-2)
        chosen = torch.arange(len(self.models), dtype=state.dtype, device=state.device)
        return ((chosen == state[..., -1:]).to(state.dtype).unsqueeze(-1) * members).sum(-2)

    def observe(self, state: Tensor, params: Params, noise: Tensor | None = None) -> Tensor:
        """Return the raw outputs (..., ny) of states (..., nx): the members' mean, or the episode's member's."""
        output = self._output(state, self.members(state))
        return output if noise is None else output + self._numbers("noise", state) * noise

    def reward(self, state: Tensor, action: Tensor, following: Tensor, params: Params) -> Tensor:
        """Return minus the cost of a step, of the outputs it leads to, from states (..., nx) with actions (..., nu)."""
        members, scale = self.members(following), self._numbers("output_scale", following)
        error = (self._output(following, members) - self._numbers("setpoint", following)) / scale
        cost = (self._numbers("q", following) * error.square()).sum(-1)
        cost = cost + (self._numbers("r", following) * self._clipped(action, following).square()).sum(-1)
        if self.spread_weight and len(self.models) > 1:
            cost = cost + self.spread_weight * (members / scale).var(-2, unbiased=False).sum(-1)
        return -cost

    def initial(self, uniform: Tensor, params: Params, options: Mapping[str, Any] | None = None) -> Tensor:
        """Return states (n, nx) of the training, the input held being the mean, from uniforms (n, nr)."""
        starts = self.starts.to(uniform)
        row = (uniform[:, 0] * len(starts)).long().clamp(max=len(starts) - 1)
        member = (uniform[:, 1:] * len(self.models)).floor()
        held = torch.zeros(len(uniform), len(self.signals.inputs), dtype=uniform.dtype, device=uniform.device)
        return torch.cat((starts[row], held, member), 1)


def states_of(
    model: IdentifiedModel, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], count: int = 256
) -> dict[str, Tensor]:
    """Return what a model comes through in records (time, nu), (time, ny): `STATES`.

    Those of "states" lie evenly over all records, at most `count`; one of "begins" is that of a record's first sample
    after the burn-in.
    """
    found, begins = [], []
    for u, y in zip(inputs, outputs, strict=True):
        scaled = [torch.as_tensor(part, dtype=model.dtype)[:, None] for part in model.signals.scaled(u, y)]
        with torch.no_grad():
            state, first = model.begin(*scaled)
            states = model.cell.trajectory(scaled[0][first:], state)[1][:, 0]
        later = 0 if model.measures_state else max(0, model.burn_in - first)
        found.append(states)
        begins.append(torch.cat((state, states))[min(later, len(states))])
    states = torch.cat(found)
    chosen = states[torch.linspace(0, len(states) - 1, min(count, len(states))).long()]
    return {"states": chosen.double(), "begins": torch.stack(begins).double()}
