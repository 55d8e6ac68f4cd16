"""A plant's step and the start of its episodes, plain or compiled: fused kernels on the CPU, a CUDA graph on a GPU."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robust_policies.envs.gradient import Transition, transition
from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.plant import Params, Plant
from robust_policies.envs.streams import Streams, draw, normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError

Tensors = Iterable[torch.Tensor]


class Batch(NamedTuple):
    """The buffers of a vectorized environment that a new episode is written into."""

    state: torch.Tensor
    observation: torch.Tensor
    elapsed: torch.Tensor
    action: torch.Tensor


def write(batch: Batch, rows: torch.Tensor | None, state: torch.Tensor, observation: torch.Tensor) -> None:
    """Write what episodes begin with, states (n, nx) and observations (n, ny), into the environments `rows` (n,).

    None: into all.
    """
    index = slice(None) if rows is None else rows
    batch.state[index] = state
    batch.observation[index] = observation.to(batch.observation.dtype)
    batch.elapsed[index] = 0
    batch.action[index] = 0.0


def write_where(batch: Batch, mask: torch.Tensor, state: torch.Tensor, observation: torch.Tensor) -> None:
    """Write what episodes begin with into the environments that `mask` (n,) bool marks; all else as `write`."""
    column = mask.unsqueeze(-1)
    batch.state.copy_(torch.where(column, state, batch.state))
    batch.observation.copy_(torch.where(column, observation.to(batch.observation.dtype), batch.observation))
    batch.elapsed.masked_fill_(mask, 0)
    batch.action.masked_fill_(column, 0.0)


class Steps:
    """What a vectorized environment asks of its plant, computed by torch call by call."""

    reuses_tensors = False
    """Whether a step writes into the tensors that the one before returned."""
    fixed_layout = False
    """Whether what a step is given must always lie in memory alike; observations then best lie column by column."""

    def __init__(self, plant: Plant, state_dtype: torch.dtype) -> None:
        self.plant = plant
        self.state_dtype = state_dtype
        self.numbers = plant.reset_size + uniforms_for_normals(plant.measurement_noise_size)
        """How many random numbers a start takes."""
        self.noise_numbers = uniforms_for_normals(plant.process_noise_size + plant.measurement_noise_size)
        """How many a step takes."""

    def noise(self, uniform: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return noises of process and measurement, (n, q) and (n, p), None where there is none, of numbers (n, r)."""
        process, measurement = self.plant.process_noise_size, self.plant.measurement_noise_size
        drawn = normals(uniform, process + measurement).to(self.state_dtype)
        return (drawn[:, :process] if process else None), (drawn[:, process:] if measurement else None)

    def transition(self, params: Params, *given: Any) -> Transition:
        """Return the step from (state, action, process, measurement, disturbance); see `gradient.step`."""
        return transition(self.plant, given[0], given[1], params, *given[2:])

    def start(
        self, params: Params, uniform: torch.Tensor, options: Any = None, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return start states and what is observed there, from uniform numbers (n, k); a given state (n, nx) stays."""
        plant, noise = self.plant, self.plant.measurement_noise_size
        if state is None:
            state = plant.initial(uniform[:, : plant.reset_size], params, options or {}).to(self.state_dtype)
        else:
            state = plant.settle(state, params)
        measurement = None
        if noise:
            measurement = normals(uniform[:, plant.reset_size : self.numbers], noise).to(self.state_dtype)
        return state, plant.observe(state, params, measurement)

    def restart(self, params: Params, streams: Streams, rows: torch.Tensor, batch: Batch) -> None:
        """Begin new episodes in the environments `rows` (n,), n > 0, from their generators' next numbers."""
        start = self.start(self.plant.take(params, rows), streams.uniform(self.numbers, rows))
        write(batch, rows, *start)


class GraphedSteps(Steps):
    """The step through torch.compile and into a CUDA graph."""

    reuses_tensors = True

    def __init__(self, plant: Plant, state_dtype: torch.dtype) -> None:
        super().__init__(plant, state_dtype)
        self._graph: Any = torch.compile(super().transition, fullgraph=True, dynamic=False, mode="reduce-overhead")
        self._warm = False

    def transition(self, params: Params, *given: Any) -> Transition:
        """Return the step; its tensors are written again by the next one."""
        if not self._warm:
            # Constants that a plant keeps per device and dtype are made here, outside the compiled graph.
            super().transition(params, *given)
            self._warm = True
        return self._graph(params, *given)


class FusedSteps(Steps):
    """Step and start as C++ kernels, compiled ahead of time: calling one costs a few microseconds."""

    fixed_layout = True

    def __init__(self, plant: Plant, state_dtype: torch.dtype) -> None:
        super().__init__(plant, state_dtype)
        self._step = AheadOfTime(super().transition)
        self._restart = AheadOfTime(self._write_starts, varying=0)

    def transition(self, params: Params, *given: Any) -> Transition:
        """Return the step; the arguments other than `params` must have the same shapes and strides in every call."""
        return Transition(*self._step(params, *given))

    def restart(self, params: Params, streams: Streams, rows: torch.Tensor, batch: Batch) -> None:
        """Do what `Steps.restart` does, in one kernel."""
        # A kernel for any number of rows must know that there are two; the same row twice does no harm.
        chosen = rows.repeat(2) if rows.shape[0] == 1 else rows
        self._restart(params, chosen, streams.state, *streams.jumps(self.numbers), *batch)

    def _write_starts(
        self,
        params: Params,
        rows: torch.Tensor,
        words: torch.Tensor,
        powers: torch.Tensor,
        offsets: torch.Tensor,
        *batch: torch.Tensor,
    ) -> tuple[()]:
        uniform, following = draw(words[:, rows], powers, offsets[:, :, rows])
        words[:, rows] = following
        write(Batch(*batch), rows, *self.start(self.plant.take(params, rows), uniform))
        return ()


class AheadOfTime:
    """A function (params, *tensors) -> tensors as a C++ kernel for the CPU.

    Compiled by `torch.export` and AOTInductor for each layout of the parameters and each set of tensors that are there
    (tens of seconds each; a C++ compiler is needed); no gradients. The results are the same to the rounding of fused
    floating-point operations. `varying` is the tensor whose first dimension may be any number above one.
    """

    def __init__(self, function: Callable[..., Tensors], varying: int | None = None) -> None:
        self.function, self.varying = function, varying
        self._kernels: dict[Any, Any] = {}
        self._params: Params | None = None
        self._leaves: list[torch.Tensor] = []
        self._layout: tuple[Any, ...] = ()

    def __call__(self, params: Params, *given: torch.Tensor | None) -> list[torch.Tensor]:
        """Return the function's tensors; the ones of `given` must have the same shapes and strides in every call."""
        if params is not self._params:
            self._params, self._leaves = params, list(params.values())
            self._layout = tuple((value.shape, value.stride(), value.dtype) for value in self._leaves)
        tensors = [*self._leaves, *[value for value in given if value is not None]]
        present = tuple([value is not None for value in given])
        kernel = self._kernels.get((self._layout, present))
        if kernel is None:
            kernel = self._kernels[self._layout, present] = self._compiled(tuple(params), present, tensors)
        return kernel.run(tensors)

    def _compiled(self, names: tuple[str, ...], present: tuple[bool, ...], tensors: list[torch.Tensor]) -> Any:
        count = len(names)

        def flat(*values: torch.Tensor) -> list[torch.Tensor]:
            rest = iter(values[count:])
            filled = [next(rest) if here else None for here in present]
            return list(self.function(dict(zip(names, values[:count], strict=True)), *filled))

        module = _Function(flat)
        # Constants that a plant keeps per device and dtype are made here, outside the traced program.
        flat(*(value.clone() for value in tensors))
        shapes: list[Any] = [None] * len(tensors)
        if self.varying is not None:
            shapes[count + self.varying] = {0: torch.export.Dim("rows", min=2)}
        with warnings.catch_warnings(), plain_tensors(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(module, tuple(tensors), dynamic_shapes=(tuple(shapes),))
            package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "kernel.pt2"))
            return torch._inductor.aoti_load_package(package).loader


class _Function(torch.nn.Module):
    """A function in the form that `torch.export` takes."""

    def __init__(self, function: Callable[..., list[torch.Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        return self.function(*tensors)


def steps_of(plant: Plant, compile: bool, device: torch.device, state_dtype: torch.dtype) -> Steps:
    """Return the plant's steps, compiled if `compile` says so; raise `InvalidValueError` where they cannot be."""
    if not isinstance(compile, bool):
        raise InvalidValueError(f"compile is {compile!r}; expected True or False.")
    if not compile:
        return Steps(plant, state_dtype)
    if not plant.differentiable:
        raise InvalidValueError(
            f"compile=True was given for a {plant.kind} task, whose physics is not torch's; leave "
            "it out (on a GPU MuJoCo-Warp replays a CUDA graph anyway)."
        )
    return GraphedSteps(plant, state_dtype) if device.type == "cuda" else FusedSteps(plant, state_dtype)
