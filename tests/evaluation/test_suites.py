"""Suites: those of the package, a user's own file, and the one line that names a mistake."""

import pytest
import yaml

from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, SchemaError, UnknownNameError
from robust_policies.evaluation import SUITES, suite_named
from robust_policies.evaluation.suite import parse_suite
from robust_policies.train import parse_recipe


@pytest.mark.parametrize("name", SUITES)
def test_the_packages_suites_parse_and_survive_being_written_out(name):
    suite = suite_named(name)
    assert suite.description and suite.sizes[0] == 0.0 and suite.attacks
    assert suite.episodes >= 50 and not set(suite.seeds) & set(suite.tuning.seeds)
    assert parse_suite(suite.resolved(), name) == suite


def test_the_paper_suite_is_the_published_table():
    suite = suite_named("paper")
    assert suite.sizes == (0.0, 0.06, 0.11, 0.15, 0.21, 0.3) and suite.episodes == 50
    assert suite.faults[0].perturbation == "ObservationDelay" and suite.faults[0].values == (0, 1, 2, 3, 4, 5)
    published = next(entry for entry in suite.attacks if entry.label == "published")
    assert published.options["objective"] == "last_reward" and published.options["window"] == 50


def test_a_file_of_ones_own_is_a_suite(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schema: 1\nsizes: [0.2, 1e-1]\nattacks: [{name: mad_pgd, steps: 3}]\n")
    suite = suite_named(str(path))
    assert suite.sizes == (0.0, 0.1, 0.2) and suite.attacks[0].options == {"steps": 3}
    with pytest.raises(MissingFileError):
        suite_named(str(tmp_path / "none.yaml"))
    path.write_text("a: [")
    with pytest.raises(CorruptFileError, match="line 1"):
        suite_named(str(path))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("attaks: []", UnknownNameError, "Did you mean 'attacks'"),
        ("critical: {levle: 0.5}", UnknownNameError, "Did you mean 'critical.level'"),
        ("attacks: [{name: mad_pdg}]", UnknownNameError, "attacks.0: .*Did you mean 'mad_pgd'"),
        ("attacks: [{name: mad_pgd, stesp: 3}]", UnknownNameError, "Did you mean 'steps'"),
        ("attacks: [{name: mad_pgd, steps: -3}]", InvalidValueError, "steps is -3"),
        ("attacks: [{name: mad_pgd, tune: [{restart: 2}]}]", UnknownNameError, "Did you mean 'restarts'"),
        ("attacks: [{name: mad_pgd, norm: per_step_l3}]", UnknownNameError, "Did you mean 'per_step_l2'"),
        ("attacks: [{name: mad_pgd}, {name: mad_pgd}]", InvalidValueError, "mad_pgd twice"),
        ("attacks: [{norm: per_step_l2}]", InvalidValueError, "attacks.0.name is missing"),
        ("noise: [gausian]", UnknownNameError, "Did you mean 'gaussian'"),
        ("sizes: [0, -1]", InvalidValueError, "numbers >= 0"),
        ("episodes: 0", InvalidValueError, "episodes is 0"),
        ("seeds: [3]\ntuning: {seeds: [3]}", InvalidValueError, "seed 3 is reported and tuned on"),
        ("seeds: [1, 1]", InvalidValueError, "different"),
        (
            "faults: [{perturbation: ObservationDely, parameter: steps, values: [1]}]",
            UnknownNameError,
            "ObservationDelay",
        ),
        ("faults: [{perturbation: ObservationDelay, parameter: step, values: [1]}]", UnknownNameError, "'steps'"),
        (
            "faults: [{perturbation: ObservationDelay, parameter: steps, values: [-1]}]",
            InvalidValueError,
            "steps is -1",
        ),
        ("faults: [{perturbation: ObservationDelay, parameter: steps, values: [a]}]", InvalidValueError, "numbers"),
        ("parameters: [{x: mass, factors: [1]}]", InvalidValueError, "two different parameters"),
        ("parameters: [{factors: [0, 1]}]", InvalidValueError, "above 0"),
        ("critical: {attacks: [mad_pgd]}", UnknownNameError, "critical"),
        ("schema: 99", SchemaError, "schema 99"),
        ("[1]", InvalidValueError, "expected keys"),
    ],
)
def test_mistakes_are_named_in_one_line(text, error, message):
    with pytest.raises(error, match=message) as raised:
        parse_suite(yaml.safe_load(text), "mine.yaml")
    assert str(raised.value).startswith("mine.yaml") and "\n" not in str(raised.value)


def test_an_unknown_suite_lists_those_there_are():
    with pytest.raises(UnknownNameError, match="Did you mean 'quick'"):
        suite_named("quik")


def test_recipes_of_earlier_runs_name_the_quick_suite_by_its_former_name():
    data = {"task": {"id": "Pendulum-v1"}, "algorithm": {"total_steps": 1000}, "evaluation": {"suite": "default"}}
    assert parse_recipe(data, "old").evaluation.suite == "quick"
    with pytest.raises(UnknownNameError, match="suite 'default'"):
        suite_named("default")


def test_settings_of_the_command_line_replace_the_suites():
    suite = suite_named("quick")
    changed = suite.changed(sizes=[0.5], episodes=2, seeds=[4])
    assert (changed.sizes, changed.episodes, changed.seeds) == ((0.0, 0.5), 2, (4,))
    only = suite.only_attacks(["sequence_pgd", "random"])
    assert [entry.shown for entry in only.attacks] == ["sequence_pgd", "random"]
    assert only.attacks[0].options == {"steps": 8, "restarts": 1} and only.critical.attacks == ("sequence_pgd",)
    with pytest.raises(UnknownNameError, match="sequence_pgd"):
        suite.only_attacks(["sequence_pdg"])
    with pytest.raises(InvalidValueError, match="1000"):
        suite.changed(seeds=[1000])
