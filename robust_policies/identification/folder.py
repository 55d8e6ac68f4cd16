"""The run folder of an identification: that of a training, with a model in place of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robust_policies.files.atomic import read_json
from robust_policies.files.yaml_text import read_yaml
from robust_policies.identification.model import JSON, TENSORS
from robust_policies.identification.settings import IdentificationSettings, parse_settings
from robust_policies.train.run.folder import RunFolder

RESULT_SCHEMA = 1


class IdentificationFolder(RunFolder):
    """The files of one identification, by name.

    `recipe` is identification.yaml; `result` is identification.json, the errors and tests of residuals.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.recipe = self.path / "identification.yaml"
        self.model_json, self.model_tensors = self.path / JSON, self.path / TENSORS
        self.result = self.path / "identification.json"
        self.simulation = self.path / "simulation.npz"

    @property
    def trained(self) -> bool:
        """Whether its model is there."""
        return self.model_json.is_file() and self.model_tensors.is_file()

    def read_recipe(self) -> Any:
        """Return the `IdentificationSettings` that the folder was made with."""
        return self.read_settings()

    def read_settings(self) -> IdentificationSettings:
        """Return the settings that the folder was made with."""
        return parse_settings(read_yaml(self.recipe), str(self.recipe))

    def read_result(self) -> dict[str, Any]:
        """Return identification.json; raises `UserError` if it is missing, broken or of a newer version."""
        return read_json(self.result, "identification", RESULT_SCHEMA)
