"""A discrete linear model of a plant about an equilibrium, from matrices or from a python-control system.

x+ = A x + B u + Bw w,  y = C x + D u,  where x, u and y are deviations: the plant's own are x0 + x, u0 + u and y0 + y.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import scipy
from numpy.typing import ArrayLike

from robust_policies import checks
from robust_policies.errors import InvalidValueError, NonFiniteError

Array = np.ndarray
# Of the fields that have a default of the right shape once the sizes are known.
_DEFAULT = cast(Array, None)


@dataclass(frozen=True, eq=False)
class LinearModel:
    """One time step of a plant near an equilibrium; float64 arrays, checked when the model is made.

    Without a value, D is zero, x0, u0 and y0 are zero and the names are x1, u1, y1 and so on. `Q` and `R` are the
    task's own quadratic cost, `W` and `V` the covariances of its noise on state and measurement, `state_range`,
    `action_low` and `action_high` (the plant's own units, not deviations) what it allows or starts within.

    Raises:
        ShapeError, NonFiniteError: the arrays do not fit one another or are not finite.
    """

    A: Array
    """(n, n)."""
    B: Array
    """(n, m)."""
    C: Array
    """(p, n)."""
    D: Array = _DEFAULT
    """(p, m)."""
    Bw: Array | None = None
    """(n, q): how disturbances enter."""
    time_step: float = 1.0
    """[s]."""
    x0: Array = _DEFAULT
    u0: Array = _DEFAULT
    y0: Array = _DEFAULT
    equilibrium: Array | None = None
    """The plant's own whole state where the model holds, exact; longer than x0 where the model leaves something out, or
    where the plant keeps orientations as four numbers."""
    residual: float = 0.0
    """|f(x0, u0) - x0|, in the states' units."""
    angles: tuple[int, ...] = ()
    """Indices of the outputs that are angles [rad], whose differences are to be wrapped to [-pi, pi)."""
    state_names: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    W: Array | None = None
    """(n, n)."""
    V: Array | None = None
    """(p, p)."""
    Q: Array | None = None
    """(n, n)."""
    R: Array | None = None
    """(m, m)."""
    state_range: Array | None = None
    """(n,), positive."""
    action_low: Array = _DEFAULT
    """(m,), may be infinite."""
    action_high: Array = _DEFAULT
    """(m,), may be infinite."""
    exact: bool = False
    """Whether the plant itself is these matrices, so that what holds for the model holds everywhere."""
    origin: str = "given matrices"
    """One line: where the model comes from and what it holds for."""

    def __post_init__(self) -> None:
        def put(name: str, shape: tuple[int | None, ...], default: ArrayLike | None, finite: bool = True) -> Array:
            value = getattr(self, name)
            value = default if value is None else value
            if value is not None:
                value = array(name, value, shape, finite)
            object.__setattr__(self, name, value)
            return cast(Array, value)

        n = put("A", (None, None), None).shape[0]
        put("A", (n, n), None)
        m, p = put("B", (n, None), None).shape[1], put("C", (None, n), None).shape[0]
        put("D", (p, m), np.zeros((p, m)))
        put("Bw", (n, None), None)
        for name, size in (("x0", n), ("u0", m), ("y0", p)):
            put(name, (size,), np.zeros(size))
        for name, size in (("W", n), ("V", p), ("Q", n), ("R", m)):
            put(name, (size, size), None)
        put("state_range", (n,), None)
        put("equilibrium", (None,), None)
        put("action_low", (m,), np.full(m, -np.inf), finite=False)
        put("action_high", (m,), np.full(m, np.inf), finite=False)
        checks.finite_float("time_step", self.time_step, above=0.0)
        for name, letter, size in (("state_names", "x", n), ("input_names", "u", m), ("output_names", "y", p)):
            given = tuple(getattr(self, name)) or tuple(f"{letter}{i + 1}" for i in range(size))
            if len(given) != size:
                raise InvalidValueError(f"{name} has {len(given)} name(s); expected {size}.")
            object.__setattr__(self, name, given)
        if not all(0 <= index < p for index in self.angles):
            raise InvalidValueError(f"angles is {self.angles}; expected indices of the {p} output(s), from 0.")

    @property
    def n(self) -> int:
        """The number of states."""
        return self.A.shape[0]

    @property
    def m(self) -> int:
        """The number of inputs."""
        return self.B.shape[1]

    @property
    def p(self) -> int:
        """The number of outputs."""
        return self.C.shape[0]


def from_matrices(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    *,
    time_step: float = 1.0,
    continuous: bool = False,
    Bw: ArrayLike | None = None,
    **fields: Any,
) -> LinearModel:
    """Return the model of matrices of one time step, or of continuous time: then by the exact zero-order hold.

    The hold is exp([[A, B, Bw], [0, 0, 0]] time_step) = [[Ad, Bd, Bwd], [0, 1, 1]]: inputs and disturbances are
    constant within a step (C. F. Van Loan, "Computing integrals involving the matrix exponential", IEEE Transactions
    on Automatic Control 23, 1978).

    Args:
        A: (n, n).
        B: (n, m).
        C: (p, n).
        D: (p, m), None for none.
        time_step: of one step, in seconds.
        continuous: whether the matrices are those of continuous time (x' = A x + B u + Bw w).
        Bw: (n, q), None for none.
        **fields: the others of `LinearModel`, in discrete time.

    Raises:
        ShapeError, NonFiniteError: as `LinearModel`, or the plant grows beyond all numbers within a time step.
    """
    # `LinearModel` makes arrays of what it is given.
    matrices: dict[str, Any] = {"A": A, "B": B, "C": C, "D": D, "Bw": Bw}
    given = LinearModel(**matrices, time_step=time_step, **{"exact": True, **fields})
    if not continuous:
        return given
    inputs = given.B if given.Bw is None else np.hstack((given.B, given.Bw))
    block = np.zeros((given.n + inputs.shape[1],) * 2)
    block[: given.n] = np.hstack((given.A, inputs))
    with np.errstate(over="ignore", invalid="ignore"):
        held = scipy.linalg.expm(block * time_step)[: given.n]
    if not np.isfinite(held).all():
        raise NonFiniteError(f"A grows beyond all numbers within time_step = {time_step:g} s; expected a slower plant.")
    B_end = given.n + given.m
    return replace(
        given, A=held[:, : given.n], B=held[:, given.n : B_end], Bw=None if given.Bw is None else held[:, B_end:]
    )


def from_control(
    system: Any, time_step: float | None = None, *, continuous: bool | None = None, **fields: Any
) -> LinearModel:
    """Return the model of a python-control `StateSpace`; a continuous one needs `time_step` [s].

    A system's own `dt` says what it is: 0 is continuous, a number the step of a discrete one, True a discrete one of
    unstated step (1 unless `time_step` says otherwise). With dt=None it says neither, and the two are different models:
    `continuous` decides then.

    Raises:
        InvalidValueError: not a state-space system; a time step that is missing or contradicts the system's own;
        dt=None without `continuous`, or a `continuous` that contradicts the system.
    """
    if not all(hasattr(system, name) for name in ("A", "B", "C", "D", "dt")):
        raise InvalidValueError(
            f"system is a {type(system).__name__}; expected a python-control StateSpace, such as "
            "control.ss(A, B, C, D) or control.tf2ss(transfer_function)."
        )
    own = None if system.dt is None or system.dt is True else float(system.dt)
    if own is not None and not (np.isfinite(own) and own >= 0):
        raise InvalidValueError(f"The system's own dt is {system.dt!r}; expected 0, True, None or a positive number.")
    known = None if system.dt is None else own == 0.0
    if known is None and continuous is None:
        raise InvalidValueError(
            "The system's dt is None, which leaves open whether it is continuous or discrete; say continuous=True or "
            "continuous=False, or set system.dt (0: continuous, a number: its step [s])."
        )
    if known is not None and continuous is not None and bool(continuous) != known:
        raise InvalidValueError(
            f"continuous is {continuous}, but the system's own dt is {system.dt!r}; leave it out, or set system.dt."
        )
    is_continuous = bool(continuous) if known is None else known
    if time_step is None:
        if is_continuous:
            raise InvalidValueError("time_step is missing; expected one in seconds, as the system is continuous.")
        time_step = own or 1.0
    elif own and not np.isclose(time_step, own, rtol=1e-9, atol=0.0):
        raise InvalidValueError(f"time_step is {time_step:g} s; expected the system's own, {own:g} s.")
    names = {"state_names": "state_labels", "input_names": "input_labels", "output_names": "output_labels"}
    labels = {ours: tuple(getattr(system, theirs)) for ours, theirs in names.items() if hasattr(system, theirs)}
    described = {**labels, "origin": "a python-control system", **fields}
    return from_matrices(
        system.A, system.B, system.C, system.D, time_step=time_step, continuous=is_continuous, **described
    )


def array(name: str, value: Any, shape: tuple[int | None, ...], finite: bool = True) -> Array:
    """Return `value` as a float64 array of that shape (None fits any size), or raise."""
    try:
        result = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"{name} is not an array of numbers: {error}.") from error
    checks.shape(name, result, shape)
    if finite and not np.isfinite(result).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; expected finite numbers.")
    return result
