"""Files and words that Python's own readers fail on in their own ways: each is one error of ours."""

import json

import pytest

from robust_policies import checks
from robust_policies.envs import load_plant
from robust_policies.envs.batch import spec_of
from robust_policies.errors import (
    CorruptFileError,
    DeviceError,
    InvalidValueError,
    MissingFileError,
    UnknownNameError,
    UserError,
)
from robust_policies.files.assets import recipe_names, recipe_path
from robust_policies.files.atomic import output_folder, read_json
from robust_policies.files.yaml_text import parse_yaml, read_yaml
from robust_policies.policies import load_policy
from robust_policies.train import RunFolder, load_recipe


@pytest.mark.parametrize(
    "text",
    ["2020-13-45", "!!int abc", "!!float abc", "!!bool abc", "0b_", "9" * 5000, "[" * 600, "!!timestamp x"],
    ids=lambda text: text[:12],
)
def test_yaml_that_only_pythons_own_readers_refuse_is_no_yaml(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"seed: {text}\n")
    with pytest.raises(CorruptFileError, match=r"is not YAML, "):
        read_yaml(path)
    with pytest.raises(InvalidValueError, match=r"--set seed was given .*, which is not YAML, ") as caught:
        parse_yaml(text, "--set seed")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "1" * 5000 + "}", '{"schema": -7}', '{"schema": 0}'])
def test_json_too_deep_too_long_or_of_no_schema_is_corrupt(text, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=r"policy\.json"):
        read_json(path, "policy", 1)


@pytest.mark.parametrize(("kind", "said"), [("policy", "a policy file"), ("evaluation", "an evaluation file")])
def test_a_missing_file_is_named_with_its_kind(kind, said, tmp_path):
    with pytest.raises(MissingFileError, match=f"does not exist; expected {said}"):
        read_json(tmp_path / "nothing.json", kind, 1)


def test_only_true_and_false_are_flags():
    assert checks.flag("squash", True) is True
    for value in ("perhaps", 1, None, [], {}):
        with pytest.raises(InvalidValueError, match=r"squash is .*; expected true or false"):
            checks.flag("squash", value)


def test_seeds_are_counted_before_they_are_listed():
    assert checks.seed_list("--seeds", "0-2,7") == [0, 1, 2, 7]
    for text in ("0-9999999999", "4294967296", "0-99999999999999999999", "0-1000000"):
        with pytest.raises(InvalidValueError, match="--seeds is "):
            checks.seed_list("--seeds", text)
    with pytest.raises(UserError, match=r"evaluation\.seeds\.0|evaluation\.seeds"):
        load_recipe("pendulum_gru", [f"evaluation.seeds=[{2**70}]"])


def test_sizes_of_perturbations_are_not_negative():
    with pytest.raises(UserError, match=r"evaluation\.sizes.* is -1"):
        load_recipe("pendulum_gru", ["evaluation.sizes=[0.1, -1.0]"])


def test_a_task_that_is_no_name_and_no_path_is_refused():
    for task in (5, None, ["pendulum"]):
        with pytest.raises(InvalidValueError, match="expected the name of a task or the path"):
            load_plant(task)


def test_a_policy_of_a_type_that_is_no_name_is_unknown(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"schema": 1, "type": []}))
    with pytest.raises(UnknownNameError, match="policy type"):
        load_policy(tmp_path)


def test_a_device_that_holds_no_numbers_is_none():
    with pytest.raises(DeviceError, match="expected 'cpu', 'cuda' or 'cuda:N'"):
        checks.device("meta")


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("hello")
    target = tmp_path / "file" / "out"
    with pytest.raises(InvalidValueError, match="cannot be written"), output_folder(target):
        target.mkdir(parents=True)
    with pytest.raises(MissingFileError, match="of ours"), output_folder(target):
        raise MissingFileError("of ours stays as it is")


def test_a_folder_is_no_recipe_and_no_message_lists_dozens_of_names(tmp_path):
    with pytest.raises(InvalidValueError, match="is a folder; expected a YAML file"):
        recipe_path(tmp_path)
    with pytest.raises(
        UnknownNameError, match=r"Did you mean 'pendulum_gru'.* The closest of [0-9]+: pendulum_gru, "
    ) as caught:
        recipe_path("pendulum_gruu")
    assert sum(name in str(caught.value) for name in recipe_names()) <= 4


NO_TASK = "from robust_policies.envs.plant import Plant\nclass Thing(Plant):\n    pass\n"


@pytest.mark.parametrize(
    ("plant", "code", "words"),
    [
        ("plant.py:Thing", "raise SystemExit(3)\n", "does not run: SystemExit"),
        (":Thing", "", "does not run"),
        ("..:Thing", "", "does not run"),
        ("plant.py:Thing", NO_TASK, "it lacks "),
    ],
)
def test_a_plant_that_is_none_is_said_with_its_file(plant, code, words, tmp_path):
    (tmp_path / "plant.py").write_text(code)
    (tmp_path / "task.yaml").write_text(json.dumps({"schema": 1, "plant": plant}))
    with pytest.raises(UserError, match=words):
        load_plant(tmp_path)


def test_a_module_that_ends_the_process_makes_no_environment(tmp_path, monkeypatch):
    (tmp_path / "ends_the_process.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownNameError, match=r"cannot be imported .SystemExit"):
        spec_of("ends_the_process:Thing-v0")


@pytest.mark.parametrize("text", ["a: &x [1, *x]", "a: &x {b: {c: *x}}"])
def test_yaml_that_holds_itself_is_refused(text):
    with pytest.raises(InvalidValueError, match="a list or mapping holds itself"):
        parse_yaml(text, "--set task")
    assert parse_yaml("[&x [1], *x]", "--set task") == [[1], [1]]


def test_where_nothing_can_be_written_is_said_before_a_rehearsal(tmp_path):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(InvalidValueError, match=r"file.txt/run' cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file.txt" / "run").continues(load_recipe("pendulum_gru"), resume=False)
    assert not RunFolder(tmp_path / "new" / "run").continues(load_recipe("pendulum_gru"), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
