"""Shared task folders, as a user would write them."""

import shutil

import pytest
import yaml

from robust_policies.files import assets


@pytest.fixture
def own_task(tmp_path):
    """Return a function that copies a task out of the repository, changed by a function of its content."""

    def make(name, change=lambda content: None, folder="own"):
        target = tmp_path / folder
        shutil.copytree(assets.task_folder(name), target)
        content = yaml.safe_load((target / "task.yaml").read_text())
        change(content)
        (target / "task.yaml").write_text(yaml.safe_dump(content))
        return target

    return make
