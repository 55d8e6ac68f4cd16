"""Tasks and recipes are found by name and by path."""

import pytest

from robust_policies.errors import MissingFileError, UnknownNameError
from robust_policies.files import assets


def test_a_recipe_is_found_by_its_bare_name_and_by_its_path_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert assets.recipe_path("pendulum_gru") == assets.recipe_path("train/pendulum_gru.yaml")
    assert assets.recipe_path("pendulum_gru").is_file()


def test_an_own_recipe_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pendulum_gru.yaml").write_text("schema: 1\n")
    assert assets.recipe_path("pendulum_gru.yaml").resolve() == tmp_path / "pendulum_gru.yaml"


def test_a_typo_is_answered_with_the_closest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'pendulum_gru'"):
        assets.recipe_path("pendlum_gru")
    with pytest.raises(UnknownNameError, match="Did you mean 'pendulum'"):
        assets.task_folder("pendlum")


def test_a_path_elsewhere_is_never_replaced_by_a_recipe_of_the_package(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        assets.recipe_path(tmp_path / "pendulum_gru.yaml")
