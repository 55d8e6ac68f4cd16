"""What is proven of an identified model: how fast it forgets, and its gains in raw units, channel by channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from robust_policies.certificates import Verification, verify
from robust_policies.certificates.certificate import array_hashes, forgotten
from robust_policies.certificates.phrases import OVER_ALL, forgetting
from robust_policies.certificates.verify import verify_chain
from robust_policies.errors import NotCertifiableError
from robust_policies.files import numbers
from robust_policies.files.atomic import write_json
from robust_policies.files.versions import versions
from robust_policies.identification.records import Array
from robust_policies.networks import Cell

SCHEMA = 1
_UP = 1 + 1e-12


@dataclass(frozen=True)
class ModelCertificate:
    """The content of a model's certificate.json.

    Attributes:
        status: PASS proves contraction, and gains where there are any.
        claim: what holds, in words.
        rate: the smallest contraction rate that is proven, with the `overshoot` of its proof.
        forgets: {"percent": 99, "steps": n}, None without a rate below 1.
        gamma_core: incremental l2 gain of the cell between scaled signals, None where none is proven.
        gamma_raw: that of the model from raw inputs to raw outputs, all channels together.
        inputs, outputs: names of the channels.
        gains: [ny][nu] the gain from each raw input alone to each raw output; None where none is proven.
        method: names the proof.
        reason: why nothing is proven.
    """

    status: Literal["PASS", "NOT_CERTIFIED"]
    claim: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rate: float | None = None
    overshoot: float | None = None
    forgets: dict[str, Any] | None = None
    gamma_core: float | None = None
    gamma_raw: float | None = None
    gains: tuple[tuple[float, ...], ...] | None = None
    method: str = ""
    reason: str = ""
    arrays_sha256: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self, path: str | Path) -> Path:
        """Return `path` after writing the certificate there."""
        return write_json(path, {"schema": self.schema, **{k: v for k, v in asdict(self).items() if k != "schema"}})


def certify(
    cell: Cell, inputs: Sequence[str], outputs: Sequence[str], input_scale: Array, output_scale: Array
) -> ModelCertificate:
    """Return what is proven of a cell between signals of these scales.

    Args:
        cell: the one that runs; its arrays are judged, not what it was built for.
        inputs: names (nu,).
        outputs: names (ny,).
        input_scale: (nu,) raw units of one unit of the cell's input.
        output_scale: (ny,) raw units of one unit of its output.
    """
    names = tuple(inputs), tuple(outputs)
    try:
        found = verify(cell)
    except NotCertifiableError as error:
        return _nothing(names, str(error))
    if found.status != "PASS":
        return _nothing(names, found.reason)
    with torch.no_grad():
        explicit: Any = cell.explicit()
    whole, gains = _raw_gains(cell, explicit, found, input_scale, output_scale)
    arrays = {name: value for name, value in cell.state_dict().items()}
    arrays |= {"input_scale": input_scale, "output_scale": output_scale}
    made = ModelCertificate(
        "PASS",
        "",
        *names,
        rate=found.rate,
        overshoot=found.overshoot,
        forgets=forgotten(found.forgets),
        gamma_core=found.gamma,
        gamma_raw=whole,
        gains=gains,
        method=found.method,
        arrays_sha256=array_hashes(arrays),
        versions=versions(),
    )
    return ModelCertificate(**{**vars(made), "claim": _claim(made)})


def _raw_gains(
    cell: Cell, explicit: Any, found: Verification, input_scale: Array, output_scale: Array
) -> tuple[float | None, tuple[tuple[float, ...], ...] | None]:
    """Return the least proven raw gain of all channels together and of each pair, None where there is none.

    u_raw = input_scale u, y_raw = output_scale y: the product gamma max(output_scale) / min(input_scale) always holds,
    an inequality with the scales in it is at most that; of one pair gamma too is scaled by two numbers alone.
    """
    product = None if found.gamma is None else found.gamma * output_scale.max() / input_scale.min() * _UP
    # `verify_chain` measures the cell's input u as |u / inputs|.
    joint = verify_chain(cell, inputs=1.0 / input_scale, outputs=output_scale, explicit=explicit)
    known = [gain for gain in (product, joint) if gain is not None and math.isfinite(gain)]
    whole = min(known, default=None)
    if whole is None:
        return None, None
    if len(input_scale) == len(output_scale) == 1:
        return whole, ((whole,),)
    rows = []
    for i, y_scale in enumerate(output_scale):
        row = []
        for j, u_scale in enumerate(input_scale):
            ratio = y_scale / u_scale * _UP
            bounds = [whole] + [
                gain * ratio for gain in (found.gamma, _alone(cell, explicit, i, j)) if gain is not None
            ]
            row.append(float(min(bounds)))
        rows.append(tuple(row))
    return whole, tuple(rows)


def _alone(cell: Cell, explicit: Any, i: int, j: int) -> float | None:
    """Return the proven gain of the cell from input j alone to output i, None where no inequality has them as matrices.

    Then that of all channels together holds for the pair too.
    """
    if not hasattr(explicit, "B2"):
        return None
    alone = explicit._replace(
        B2=explicit.B2[:, [j]],
        D12=explicit.D12[:, [j]],
        C2=explicit.C2[[i]],
        D21=explicit.D21[[i]],
        D22=explicit.D22[[i]][:, [j]],
    )
    return verify_chain(cell, inputs=np.ones(1), outputs=np.ones(1), explicit=alone)


def _nothing(names: tuple[tuple[str, ...], tuple[str, ...]], reason: str) -> ModelCertificate:
    reason = reason.rstrip(".")
    claim = f"Nothing is proven: {reason}. This does not mean that the model is unstable."
    return ModelCertificate("NOT_CERTIFIED", claim, *names, reason=reason, versions=versions())


def _claim(made: ModelCertificate) -> str:
    parts = []
    if made.gamma_raw is not None:
        parts.append(
            "for any two input sequences and the same initial state, the l2 norm of the difference of the raw outputs, "
            f"{OVER_ALL}, is at most {numbers.upper(made.gamma_raw)} times that of the raw inputs, likewise"
        )
    if made.rate is not None:
        parts.append(forgetting(made, "under the same inputs, the states of two copies started differently"))
    how = f" ({made.method})" if made.method else ""
    return (
        f"Proven for the arrays that run, in exact arithmetic{how}: {'; and '.join(parts)}. This is about the model "
        "alone, from its inputs to its outputs: how far it is from the plant is measured, not proven."
    )
