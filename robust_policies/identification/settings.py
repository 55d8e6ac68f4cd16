"""What an identification is asked for: data, cell, training; the folder's identification.yaml."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from robust_policies.checks import SEEDS
from robust_policies.errors import InvalidValueError, SchemaError
from robust_policies.files.settings import Strict, one_line
from robust_policies.files.yaml_text import dump_yaml
from robust_policies.train.recipe.sections import CheckpointSection

SCHEMA = 1
_BURN_IN = 64


class DataSection(Strict):
    """Which files, which columns, and which part of them is for what."""

    files: list[str] = Field(min_length=1, description="files or folders: CSV, NPZ, MAT, Parquet")
    inputs: list[str] = Field(min_length=1, description="columns that drive the plant")
    outputs: list[str] = Field(min_length=1, description="columns that were measured")
    sample_time: float | None = Field(default=None, gt=0, description="seconds; null: that of the time column")
    time: str | None = Field(default=None, description="column of the time; null: `time`, `t` or none")
    experiment: str | None = Field(
        default=None, description="column that tells experiments apart; null: each file is one"
    )
    train: list[str] = Field(
        default_factory=list, description="NAME, NAME[START:STOP] or [START:STOP]; empty: by shares"
    )
    validation: list[str] = Field(default_factory=list)
    test: list[str] = Field(default_factory=list)
    washout: int | None = Field(default=None, ge=0, description="samples left out of errors; null: algorithm.burn_in")


class TrainingSection(Strict):
    """How the model is fitted; steps are updates."""

    counted: ClassVar[Literal["n_updates"]] = "n_updates"

    total_steps: int = Field(default=2000, ge=1, description="updates at most")
    batching: Literal["windows", "segments"] = Field(
        default="windows",
        description="windows: at random places, each begun anew; segments: in order, the state carried over",
    )
    batch: int = Field(default=64, ge=1, description="windows, or segments side by side, of an update")
    window: int = Field(default=256, ge=2, description="samples of each")
    burn_in: int | None = Field(
        default=None,
        ge=0,
        description="samples of a window that its error leaves out, or the encoder reads; null: 64, at most a quarter "
        "of the window and of the shortest record",
    )
    initial_state: Literal["zero", "learned", "encoded"] = "zero"
    encoder_sizes: list[int] = Field(default_factory=lambda: [64])
    free_run: float = Field(default=1.0, ge=0, description="weight of the error of simulation")
    one_step: float = Field(
        default=0.0, ge=0, description="weight of the error one step from a measured or encoded state"
    )
    learning_rate: float = Field(default=5e-3, gt=0)
    decay: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: float = Field(default=10.0, gt=0)
    patience: int | None = Field(
        default=20, ge=1, description="evaluations without a better one that end it; null: none"
    )

    @model_validator(mode="after")
    def _fits(self) -> TrainingSection:
        if self.burn_in is not None and self.burn_in >= self.window:
            raise ValueError(f"burn_in is {self.burn_in} and window {self.window}; expected a burn_in below it")
        if self.free_run == self.one_step == 0:
            raise ValueError("free_run and one_step are 0; expected a weight above 0")
        if self.initial_state == "encoded" and self.burn_in == 0:
            raise ValueError("burn_in is 0 with initial_state encoded, which reads these samples; expected at least 1")
        return self


class KeepSection(Strict):
    """When the model is judged and saved, in updates."""

    every: int = Field(default=200, ge=1, description="updates between two checkpoints to resume from")
    evaluate_every: int = Field(default=50, ge=1, description="updates between two simulations of the validation")


class IdentificationSettings(Strict):
    """A whole identification."""

    deterministic: ClassVar[bool] = False
    target: ClassVar[None] = None

    schema_: int = Field(default=SCHEMA, alias="schema", ge=1)
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    precision: Literal["float32", "float64"] = "float32"
    data: DataSection
    cell: dict[str, Any] = Field(default_factory=lambda: {"name": "r2dn"}, description="name, and the cell's options")
    algorithm: TrainingSection = Field(default_factory=TrainingSection)
    keep: KeepSection = Field(default_factory=KeepSection)

    @property
    def checkpoints(self) -> CheckpointSection:
        """`keep` as the training loop counts, in samples."""
        samples = self.algorithm.batch * self.algorithm.window
        return CheckpointSection(
            every=self.keep.every * samples, evaluate_every=self.keep.evaluate_every * samples, certify_every=0
        )

    @property
    def burn_in(self) -> int:
        """Samples of a window that its error leaves out; known once the data is (`for_records`)."""
        if self.algorithm.burn_in is None:
            raise InvalidValueError("algorithm.burn_in is null before the data is read; use for_records(...) first.")
        return self.algorithm.burn_in

    @property
    def washout(self) -> int:
        """Samples at the beginning of a record that errors leave out."""
        return self.burn_in if self.data.washout is None else self.data.washout

    def for_records(self, shortest: int) -> IdentificationSettings:
        """Return these settings with a burn-in that suits records of at least so many samples, where none is given."""
        if self.algorithm.burn_in is not None:
            return self
        found = max(1, min(_BURN_IN, self.algorithm.window // 4, shortest // 4))
        return self.model_copy(update={"algorithm": self.algorithm.model_copy(update={"burn_in": found})})

    def resolved(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        return self.model_dump(by_alias=True)

    def to_yaml(self) -> str:
        """Return all settings as YAML text."""
        return dump_yaml(self.resolved())


def parse_settings(data: Any, source: str) -> IdentificationSettings:
    """Return the settings that nested dicts describe; raise a `UserError` of one line that names the key."""
    if not isinstance(data, dict):
        raise InvalidValueError(f"{source} holds {type(data).__name__}; expected keys such as data, cell, algorithm.")
    version = data.get("schema", SCHEMA)
    if isinstance(version, int) and version > SCHEMA:
        raise SchemaError(f"{source} has schema {version}; this version reads up to {SCHEMA}. Upgrade robust-policies.")
    try:
        return IdentificationSettings.model_validate(data)
    except ValidationError as error:
        raise one_line(error, IdentificationSettings, source) from error
