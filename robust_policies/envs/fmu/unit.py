"""One FMU for co-simulation through FMPy, FMI 2 and 3 alike: numbers in, a step, numbers out.

The input of a step is set before it and held over it; what is read afterwards is of the step's end, with that input
still held. FMPy's own recorder writes the input of the step before into a row, so it is not used.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robust_policies.errors import (
    CorruptFileError,
    FmuError,
    InvalidValueError,
    MissingFileError,
    RobustPoliciesError,
    UnknownNameError,
)


class Variable(NamedTuple):
    """A variable of an FMU, one real number.

    `low`, `high` and `start` are None where the FMU does not say.
    """

    name: str
    reference: int
    causality: str
    kind: str
    low: float | None
    high: float | None
    start: float | None
    unit: str | None


_REAL = ("Real", "Float64", "Float32")


class Unit:
    """An FMU that is ready to simulate.

    Args:
        path: the .fmu file. It holds compiled code that runs in this process: use only those you trust.

    Raises:
        MissingFileError: there is no such file, or FMPy is not installed.
        CorruptFileError: it is no FMU. InvalidValueError: it is none for co-simulation on this platform, of FMI 2 or 3.

    Attributes:
        variables: of one real number, by name.
        step: step size that it suggests, seconds, or None.
        keeps_states: whether it says that its state can be taken and set.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise MissingFileError(f"There is no FMU at {path}; give the path of a .fmu file.")
        try:
            self._library = importlib.import_module("fmpy")
        except ImportError as error:
            raise MissingFileError("FMPy is not installed; install robust-policies[fmu].") from error
        try:
            described = self._library.read_model_description(str(self.path), validate=False)
        except Exception as error:
            raise CorruptFileError(f"{self.path} is no FMU that can be read ({_line(error)}).") from error
        self.version = str(described.fmiVersion).split(".")[0]
        if self.version not in ("2", "3") or described.coSimulation is None:
            raise InvalidValueError(
                f"{self.path.name} is of FMI {described.fmiVersion}"
                f"{'' if described.coSimulation else ', without co-simulation'}; expected FMI 2 or 3 for co-simulation."
            )
        platform, offered = self._library.platform, self._library.supported_platforms(str(self.path))
        if platform not in offered:
            raise InvalidValueError(
                f"{self.path.name} is for {', '.join(offered) or 'no platform'}; expected {platform}."
            )
        self._described = described
        known = described.defaultExperiment
        size = None if known is None or known.stepSize is None else float(known.stepSize)
        self.step, self.start_time = size, 0.0
        if known is not None and known.startTime is not None:
            self.start_time = float(known.startTime)
        self.keeps_states = bool(getattr(described.coSimulation, "canGetAndSetFMUstate", False))
        self.variables = {one.name: one for one in map(_variable, described.modelVariables) if one is not None}
        self._folder: str | None = None
        self._slave: Any = None

    def named(self, names: Sequence[str] | None, causality: str) -> list[Variable]:
        """Return the variables of these names, None: all real ones of a causality such as "input".

        Raises:
            UnknownNameError: the FMU has none of a name. InvalidValueError: there is none.
        """
        if names is None:
            found = [one for one in self.variables.values() if one.causality == causality]
        else:
            for name in names:
                if name not in self.variables:
                    raise UnknownNameError.among(f"variable of {self.path.name}", str(name), self.variables)
            found = [self.variables[name] for name in names]
        if not found:
            raise InvalidValueError(f"{self.path.name} has no real {causality}; name some of its variables.")
        return found

    def begin(self, values: Mapping[str, float], anew: bool) -> None:
        """Bring it to its start with these values of variables; `anew`: by a new instance, else by its own reset.

        Raises FmuError where it refuses.
        """
        try:
            if self._slave is not None and anew:
                self._free()
            if self._slave is None:
                self._slave = self._instance()
            else:
                self._slave.reset()
            slave = self._slave
            if self.version == "2":
                slave.setupExperiment(startTime=self.start_time)
            self.set(values)
            if self.version == "2":
                slave.enterInitializationMode()
            else:
                slave.enterInitializationMode(startTime=self.start_time)
            slave.exitInitializationMode()
        except RobustPoliciesError:
            raise
        except Exception as error:
            self._free()
            raise FmuError(f"{self.path.name} cannot start ({_line(error)}).") from error

    def set(self, values: Mapping[str, float]) -> None:
        """Set variables, by name."""
        for name, value in values.items():
            one = self.variables[name]
            self._call(f"set{one.kind}", [one.reference], [float(value)])

    def get(self, wanted: Sequence[Variable]) -> list[float]:
        """Return the values of variables."""
        return [float(self._call(f"get{one.kind}", [one.reference])[0]) for one in wanted]

    def advance(self, time: float, size: float) -> bool:
        """Take a step from `time`, seconds; return whether the FMU asked to end. Raises FmuError where it refuses."""
        found = self._call("doStep", time, size, not self.keeps_states)
        if self.version == "2":
            return False
        _, ended, early, _ = found
        if early:
            raise FmuError(f"{self.path.name} ended a step early at {time:g} s, which it was not allowed to.")
        return bool(ended)

    def take_state(self) -> Any:
        """Return its state, to be given back to `set_state` and at last to `free_state`."""
        return self._call("getFMUState")

    def set_state(self, state: Any) -> None:
        """Set a state that it gave."""
        self._call("setFMUState", state)

    def free_state(self, state: Any, instance: Any) -> None:
        """Forget a state of an instance; nothing happens where that is gone."""
        if self._slave is not None and self._slave is instance:
            self._call("freeFMUState", state)

    @property
    def instance(self) -> Any:
        """The instance that runs, None if there is none; states are of one instance."""
        return self._slave

    def close(self) -> None:
        """End it and remove what was unpacked; again does nothing."""
        self._free()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _call(self, name: str, *values: Any, **options: Any) -> Any:
        try:
            return getattr(self._slave, name)(*values, **options)
        except Exception as error:
            raise FmuError(f"{self.path.name}: {name} failed ({_line(error)}).") from error

    def _instance(self) -> Any:
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="fmu_")
            self._library.extract(str(self.path), unzipdir=self._folder)
        module = importlib.import_module(f"fmpy.fmi{self.version}")
        slave = getattr(module, f"FMU{self.version}Slave")(
            guid=self._described.guid,
            unzipDirectory=self._folder,
            modelIdentifier=self._described.coSimulation.modelIdentifier,
            instanceName="environment",
        )
        slave.instantiate()
        return slave

    def _free(self) -> None:
        slave, self._slave = self._slave, None
        if slave is None:
            return
        for what in ("terminate", "freeInstance"):
            try:
                getattr(slave, what)()
            # It goes in any case.
            except Exception:
                continue


def _variable(given: Any) -> Variable | None:
    """Return a real scalar, None of another variable."""
    if given.type not in _REAL or getattr(given, "dimensions", None):
        return None
    low, high, start = (None if part is None else float(part) for part in (given.min, given.max, _start(given.start)))
    return Variable(given.name, int(given.valueReference), given.causality, given.type, low, high, start, given.unit)


def _start(text: Any) -> Any:
    return text[0] if isinstance(text, list) else text


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
