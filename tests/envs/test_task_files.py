"""What is wrong in a task.yaml is said in one line."""

import gymnasium
import pytest

import robust_policies.envs  # noqa: F401
from robust_policies.envs import load_plant
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    ShapeError,
    UnknownNameError,
    UserError,
)
from robust_policies.files import assets


def put(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize("name", assets.task_names())
def test_every_task_of_the_package_loads_and_has_its_page(name):
    assert load_plant(name).max_episode_steps > 0
    page = (assets.task_folder(name) / "README.md").read_text()
    for heading in ("## Description", "## Action Space", "## Observation Space", "## Rewards", "## Starting State",
                    "## Episode End", "## Version History"):  # fmt: skip
        assert heading in page


@pytest.mark.parametrize(
    ("task", "change", "error", "message"),
    [
        (
            "pendulum",
            put("parameters", "mas", value=1.0),
            UnknownNameError,
            r"'parameters.mas'.*Did you mean '.*\.mass'.*mass \[kg\]",
        ),
        ("pendulum", put("paramters", value={}), UnknownNameError, "Did you mean 'parameters'"),
        ("pendulum", put("parameters", "mass", value=-1.0), InvalidValueError, r"parameters.mass is -1.0"),
        ("pendulum", put("parameters", "mass", value=float("nan")), InvalidValueError, "parameters.mass is nan"),
        ("pendulum", put("time_step", value=0), InvalidValueError, "time_step is 0"),
        ("pendulum", put("max_episode_steps", value=0), InvalidValueError, "max_episode_steps is 0"),
        ("pendulum", put("plant", value="pendulun"), UnknownNameError, "Did you mean 'pendulum'"),
        ("pendulum", put("schema", value=2), InvalidValueError, "schema is 2"),
        ("linear", put("parameters", "B", value=[[1.0]]), ShapeError, "parameters.B is 1 by 1; expected 2 by any"),
        ("linear", put("parameters", "A", value=[[1.0, 2.0], [3.0]]), ShapeError, "parameters.A has rows"),
        ("linear", put("parameters", "C", value=[[float("nan"), 1.0]]), InvalidValueError, r"C.0.0 is nan"),
        ("linear", put("cost", "Q", value=[[1.0, 0.0], [0.0, -1.0]]), InvalidValueError, "cost.Q is not symmetric"),
        ("linear", put("limits", "action", value=[1.0, 1.0]), ShapeError, "limits.action has 2"),
        ("linear", put("noise", "proces", value=[0.0]), UnknownNameError, "Did you mean 'noise.process'"),
        ("linear", put("reset", "distribution", value="gauss"), InvalidValueError, "reset.distribution is 'gauss'"),
    ],
)
def test_a_wrong_entry_is_named_with_the_file_and_what_would_be_right(own_task, task, change, error, message):
    folder = own_task(task, change)
    with pytest.raises(error, match=message) as caught:
        load_plant(folder)
    assert str(folder / "task.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(own_task):
    folder = own_task("pendulum", lambda content: content["parameters"].pop("mass"))
    with pytest.raises(InvalidValueError, match=r"parameters.mass is missing"):
        load_plant(folder)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere/task.yaml"):
        load_plant(tmp_path / "nowhere")
    with pytest.raises(UnknownNameError, match="Did you mean 'pendulum'"):
        load_plant("pendulm")
    (tmp_path / "task.yaml").write_text("plant: [")
    with pytest.raises(CorruptFileError, match="not YAML, line 1"):
        load_plant(tmp_path)
    (tmp_path / "task.yaml").write_text("- 1")
    with pytest.raises(CorruptFileError, match="expected a mapping"):
        load_plant(tmp_path)


def test_gymnasium_passes_the_message_on(own_task):
    folder = own_task("linear", put("parameters", "B", value=[[1.0]]))
    with pytest.raises(UserError, match=r"parameters\.B"):
        gymnasium.make("robust_policies/Linear-v0", task=str(folder))


def test_a_task_file_is_read_as_every_other_file_of_settings(tmp_path):
    text = (assets.task_folder("pendulum") / "task.yaml").read_text()
    (tmp_path / "task.yaml").write_text(text.replace("time_step: 0.05", "time_step: 5e-2"))
    assert load_plant(tmp_path).time_step == 0.05 and "5e-2" in (tmp_path / "task.yaml").read_text()
    (tmp_path / "task.yaml").write_text(text + "\ntime_step: 0.1\n")
    with pytest.raises(CorruptFileError, match="'time_step' is there twice"):
        load_plant(tmp_path)
