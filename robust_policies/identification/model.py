"""An identified model: a cell between scaled signals, run in raw units, and its two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, ShapeError
from robust_policies.files.atomic import read_json, write_atomic, write_json
from robust_policies.identification.certificate import ModelCertificate, certify
from robust_policies.identification.records import Array
from robust_policies.networks import Cell, LearnedState, StateEncoder, cell_from_config

SCHEMA = 1
JSON, TENSORS = "model.json", "model.safetensors"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Signals:
    """The channels of a model and how they are scaled: the cell reads (u - input_offset) / input_scale.

    Attributes:
        inputs, outputs: names.
        sample_time: in seconds.
        input_offset, input_scale: (nu,) in raw units, scales > 0.
        output_offset, output_scale: (ny,) the raw output is offset + scale times the cell's.
        input_range: the least and the largest value of each input in the training, () where it is not known.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sample_time: float
    input_offset: tuple[float, ...]
    input_scale: tuple[float, ...]
    output_offset: tuple[float, ...]
    output_scale: tuple[float, ...]
    input_range: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, inputs: Sequence[str], outputs: Sequence[str], sample_time: float, u: Array, y: Array) -> Self:
        """Return the signals scaled by mean and deviation of a training's inputs (time, nu), outputs (time, ny)."""
        scales = [values for part in (u, y) for values in (part.mean(0), part.std(0))]
        numbers = (tuple(map(float, values)) for values in scales)
        ranges = tuple((float(column.min()), float(column.max())) for column in u.T)
        return cls(tuple(inputs), tuple(outputs), sample_time, *numbers, input_range=ranges)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the signals of a model.json; raises TypeError, ValueError where they are none."""
        entries: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        made = cls(**{**entries, "input_range": tuple(map(tuple, content.get("input_range", ())))})
        for part, names in (("input", made.inputs), ("output", made.outputs)):
            offset, scale = (np.asarray(getattr(made, f"{part}_{name}"), float) for name in ("offset", "scale"))
            if not (len(offset) == len(scale) == len(names) and np.isfinite(offset).all() and (scale > 0).all()):
                raise ValueError(f"its {part} scales are not as many positive numbers as names")
        return made

    def steady(self) -> Self:
        """Return the signals with a scale of 1 in place of 0: of a channel that does not move."""
        scales = {f"{part}_scale": getattr(self, f"{part}_scale") for part in ("input", "output")}
        return replace(self, **{name: tuple(one or 1.0 for one in scale) for name, scale in scales.items()})

    def unscaled(self) -> Self:
        """Return the signals as the cell reads them, offsets 0 and scales 1."""
        ones = {"input": (1.0,) * len(self.inputs), "output": (1.0,) * len(self.outputs)}
        zeros = {f"{part}_offset": (0.0,) * len(scale) for part, scale in ones.items()}
        return replace(self, **zeros, **{f"{part}_scale": scale for part, scale in ones.items()})

    def scaled(self, inputs: Array | None = None, outputs: Array | None = None) -> tuple[Array, ...]:
        """Return what the cell reads (..., nu) and is compared with (..., ny) for raw signals, those that are given."""
        pairs = ((inputs, self.input_offset, self.input_scale), (outputs, self.output_offset, self.output_scale))
        return tuple((raw - np.asarray(o)) / np.asarray(s) for raw, o, s in pairs if raw is not None)


class IdentifiedModel(nn.Module):
    """x+ = f(x, u), y = g(x, u) in raw units.

    Args:
        cell: between scaled signals.
        signals: names, sample time and scales.
        initial: where a run begins: `LearnedState`, `StateEncoder`, or None: at zero, or for a cell whose output is its
            state at what was measured.
        burn_in: samples after which the training judged it.
    """

    def __init__(
        self, cell: Cell, signals: Signals, initial: LearnedState | StateEncoder | None = None, burn_in: int = 0
    ) -> None:
        super().__init__()
        if (cell.input_size, cell.output_size) != (len(signals.inputs), len(signals.outputs)):
            raise ShapeError(
                f"The cell has {cell.input_size} inputs and {cell.output_size} outputs; expected "
                f"{len(signals.inputs)} and {len(signals.outputs)}, as there are signals."
            )
        self.cell, self.signals, self.initial, self.burn_in = cell, signals, initial, burn_in

    @property
    def measures_state(self) -> bool:
        """Whether the outputs are the state, so that a measurement says where to begin."""
        return getattr(self.cell, "gives_state", False)

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the cell."""
        return self.cell.initial_state(1).dtype

    def begin(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, int]:
        """Return the state (batch, nx) a run begins with, and the index of the first sample it simulates.

        Scaled inputs (time, batch, nu) and measured outputs (time, batch, ny) of at least the encoder's window.
        """
        if self.measures_state:
            return outputs[0], 0
        if isinstance(self.initial, StateEncoder):
            n = self.initial.window
            return self.initial(inputs[:n], outputs[:n]), n
        return self.default_state(inputs.shape[1]), 0

    def default_state(self, batch_size: int) -> Tensor:
        """Return the state (batch, nx) of a run of which nothing was measured."""
        return (
            self.initial(batch_size) if isinstance(self.initial, LearnedState) else self.cell.initial_state(batch_size)
        )

    def encode(self, inputs: Any, outputs: Any) -> np.ndarray:
        """Return the state (nx,) at the end of a raw record: inputs (time, nu), measured outputs (time, ny).

        The model runs over the record from where it begins and so comes to the state; with an encoder its last samples
        are read. Raises ShapeError where they do not fit, InvalidValueError for a record that is too short.
        """
        u, y = (_record(name, value, width) for name, value, width in (
            ("inputs", inputs, self.cell.input_size), ("outputs", outputs, self.cell.output_size)
        ))  # fmt: skip
        least = self.initial.window if isinstance(self.initial, StateEncoder) else 1
        if len(u) != len(y) or len(u) < least:
            raise InvalidValueError(
                f"inputs has {len(u)} samples and outputs {len(y)}; expected as many, at least {least}."
            )
        u, y = (torch.as_tensor(part, dtype=self.dtype)[:, None] for part in self.signals.scaled(u, y))
        with torch.no_grad():
            if isinstance(self.initial, StateEncoder):
                return self.begin(u[-least:], y[-least:])[0][0].double().numpy()
            state, _ = self.begin(u, y)
            return self.cell(u, state)[1][0].double().numpy()

    def run(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return raw outputs (time, batch, ny) and the final state (batch, nx) for raw inputs (time, batch, nu).

        Differentiable in inputs, state and parameters; of the dtype of the inputs.
        """
        s = self.signals
        u_offset, u_scale, y_offset, y_scale = (
            torch.as_tensor(v, dtype=torch.float64, device=inputs.device)
            for v in (s.input_offset, s.input_scale, s.output_offset, s.output_scale)
        )
        begin = self.default_state(inputs.shape[1]) if state is None else state.to(self.dtype)
        outputs, final = self.cell(((inputs.double() - u_offset) / u_scale).to(self.dtype), begin)
        return (outputs.double() * y_scale + y_offset).to(inputs.dtype), final.to(inputs.dtype)

    def simulate(self, inputs: Any, state: Any = None) -> tuple[Any, Any]:
        """Return the outputs and the final state of a free run, in raw units; the state is the cell's own.

        Args:
            inputs: (time, nu) or (time, batch, nu), an array or a tensor; (time,) too where there is one input.
            state: (nx,) or (batch, nx); None: where runs begin of which nothing was measured.

        Returns:
            outputs (time, ny) or (time, batch, ny) and the state (nx,) or (batch, nx): arrays in float64, of a tensor
            tensors of its dtype, differentiable.

        Raises:
            ShapeError: a shape does not fit. NonFiniteError: the inputs hold NaN or infinity.
        """
        tensor = isinstance(inputs, Tensor)
        u = inputs if tensor else torch.as_tensor(np.asarray(inputs, dtype=np.float64))
        u = u[:, None] if u.ndim == 1 and self.cell.input_size == 1 else u
        if u.ndim not in (2, 3) or u.shape[-1] != self.cell.input_size or not len(u):
            raise ShapeError(
                f"inputs has shape {tuple(u.shape)}; expected (time, {self.cell.input_size}), or with a batch."
            )
        single = u.ndim == 2
        u = u[:, None] if single else u
        x = None
        if state is not None:
            x = torch.as_tensor(state, dtype=u.dtype, device=u.device)
            x = x[None] if single and x.ndim == 1 else x
            if x.shape != (u.shape[1], self.cell.state_size):
                raise ShapeError(f"state has shape {tuple(x.shape)}; expected ({u.shape[1]}, {self.cell.state_size}).")
        if tensor:
            outputs, x = self.run(u, x)
        else:
            with torch.no_grad():
                outputs, x = self.run(u, x)
        outputs, x = (outputs[:, 0], x[0]) if single else (outputs, x)
        return (outputs, x) if tensor else (outputs.numpy(), x.numpy())

    def certificate(self) -> ModelCertificate:
        """Return what is proven of the arrays that run: contraction, and gains in raw units."""
        s = self.signals
        return certify(self.cell, s.inputs, s.outputs, np.asarray(s.input_scale), np.asarray(s.output_scale))

    @property
    def sha256(self) -> str:
        """Of the numbers that it computes with: its arrays, and the scales and offsets of its signals."""
        scales = {
            f"{part}_{name}": np.asarray(getattr(self.signals, f"{part}_{name}"), np.float64)
            for part in ("input", "output")
            for name in ("scale", "offset")
        }
        return digest(array_hashes({**self.state_dict(), **scales}))

    def save(self, folder: str | Path, **entries: Any) -> Path:
        """Return `folder` after writing model.json, with further `entries` in it, and model.safetensors there."""
        folder = Path(folder)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        initial: dict[str, Any] | None = None
        if isinstance(self.initial, StateEncoder):
            initial = {"kind": "encoded", **self.initial.options()}
        elif isinstance(self.initial, LearnedState):
            initial = {"kind": "learned"}
        content = {
            "schema": SCHEMA,
            "cell": self.cell.config(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "signals": asdict(self.signals),
            "initial_state": initial,
            "burn_in": self.burn_in,
            **entries,
        }
        data = safetensors.torch.save(tensors)
        write_atomic(folder / TENSORS, lambda file: file.write(data))
        write_json(folder / JSON, content)
        return folder


def load_model(folder: str | Path) -> IdentifiedModel:
    """Return the model in a folder of `robust-policies identify`.

    Raises:
        MissingFileError: there is none.
        CorruptFileError, SchemaError: it cannot be read, or a newer version wrote it.
    """
    folder = Path(folder)
    if not (folder / JSON).is_file() or not (folder / TENSORS).is_file():
        raise MissingFileError(f"{folder} has no {JSON} and {TENSORS}; make them with `robust-policies identify`.")
    content = read_json(folder / JSON, "model", SCHEMA)
    try:
        signals = Signals.from_json(content["signals"])
        cell = cell_from_config(content["cell"]).to(DTYPES[content["dtype"]])
        initial = _initial(content["initial_state"], cell)
        model = IdentifiedModel(cell, signals, initial, content["burn_in"])
        model.load_state_dict(safetensors.torch.load((folder / TENSORS).read_bytes()))
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise CorruptFileError(f"{folder} holds no whole model ({error}); identify it again.") from error
    for parameter in model.parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CorruptFileError(f"{folder / TENSORS} holds NaN or infinity; identify the model again.")
    return model.eval()


def _initial(content: dict[str, Any] | None, cell: Cell) -> LearnedState | StateEncoder | None:
    if content is None:
        return None
    options = dict(content)
    kind = options.pop("kind")
    return LearnedState(cell) if kind == "learned" else StateEncoder(cell, **options)


def _record(name: str, value: Any, width: int) -> Array:
    found = np.asarray(value, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 and width == 1 else found
    if found.ndim != 2 or found.shape[1] != width:
        raise ShapeError(f"{name} has shape {found.shape}; expected (time, {width}).")
    return found
