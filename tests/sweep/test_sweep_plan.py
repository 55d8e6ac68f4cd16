import pytest

from robust_policies.checks import seed_list
from robust_policies.errors import UserError
from robust_policies.sweep.plan import plan_trials, read_assignments, split_values, trial_name
from robust_policies.sweep.space import Choice, Range, read_space
from robust_policies.train import load_recipe

RECIPE = "pendulum_r2dn_gamma6"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", ["4"]),
        ("4, 6,8", ["4", "6", "8"]),
        ("[16, 16],[32, 32]", ["[16, 16]", "[32, 32]"]),
        ("[16, 16]", ["[16, 16]"]),
        ("[ObservationDelay: 2, ActionNoise: 0.1],[]", ["[ObservationDelay: 2, ActionNoise: 0.1]", "[]"]),
        ("{a: [1, 2], b: 3},null", ["{a: [1, 2], b: 3}", "null"]),
        ("'one, two',three", ["'one, two'", "three"]),
        ("don't, won't", ["don't", "won't"]),
        ("4,,6", ["4", "", "6"]),
    ],
)
def test_values_are_separated_by_commas_outside_of_brackets_and_quotes(text, values):
    assert split_values(text) == values


def test_one_value_is_fixed_and_several_are_a_grid():
    found = read_assignments(["policy.gamma=4,6", "policy.hidden_sizes=[8, 8]", "algorithm.n_epochs=2"])
    assert found.grid == {"policy.gamma": ["4", "6"]}
    assert found.fixed == ["policy.hidden_sizes=[8, 8]", "algorithm.n_epochs=2"]


def test_the_plan_is_the_product_of_the_grids_and_the_seeds():
    trials = plan_trials(RECIPE, ["policy.gamma=4,6", "policy.hidden_sizes=[4],[8, 8]", "algorithm.n_epochs=2"], [0, 7])
    assert [trial.name for trial in trials] == [
        "gamma=4_hidden_sizes=4_seed=0",
        "gamma=4_hidden_sizes=4_seed=7",
        "gamma=4_hidden_sizes=8x8_seed=0",
        "gamma=4_hidden_sizes=8x8_seed=7",
        "gamma=6_hidden_sizes=4_seed=0",
        "gamma=6_hidden_sizes=4_seed=7",
        "gamma=6_hidden_sizes=8x8_seed=0",
        "gamma=6_hidden_sizes=8x8_seed=7",
    ]
    last = trials[-1]
    assert last.setting == {"policy.gamma": 6, "policy.hidden_sizes": [8, 8]}
    assert (last.recipe.seed, last.recipe.policy.gamma, last.recipe.policy.hidden_sizes) == (7, 6.0, [8, 8])
    assert {trial.recipe.algorithm.n_epochs for trial in trials} == {2}


def test_without_seeds_the_recipe_s_own_is_taken():
    assert [trial.seed for trial in plan_trials(RECIPE, [], None)] == [load_recipe(RECIPE).seed]
    assert [trial.seed for trial in plan_trials(RECIPE, ["seed=5"], None)] == [5]


def test_a_trial_keeps_its_name_when_values_and_seeds_are_added():
    few = {trial.name for trial in plan_trials(RECIPE, ["policy.gamma=4,6"], [0, 1])}
    more = {trial.name for trial in plan_trials(RECIPE, ["policy.gamma=8,6,4"], [2, 1, 0])}
    assert few < more


def test_names_are_file_names_and_differ():
    texts = ["[ObservationDelay: 2]", "[ObservationDelay: 3]", "../x", "a" * 90, "a" * 91, "1e-3", "-1", "null"]
    names = [trial_name({"task.perturbations": text}, 0) for text in texts]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name and len(name) < 100 for name in names)
    assert trial_name({"policy.activation": "relu", "other.activation": "tanh"}, 1) == (
        "policy.activation=relu_other.activation=tanh_seed=1"
    )


@pytest.mark.parametrize(
    ("given", "seeds", "words"),
    [
        (["policy.gama=4,6"], [0], "Did you mean 'policy.gamma'"),
        (["policy.gamma=4,-1"], [0], "policy.gamma is -1"),
        (["policy.gamma=4,,6"], [0], "--set policy.gamma has an empty value"),
        (["policy.gamma=4,4.0"], [0], "--set policy.gamma has the value 4 twice"),
        (["policy.gamma=4,6", "policy.gamma=8"], [0], "--set names policy.gamma twice"),
        (["policy.gamma=8", "policy.gamma=4,6"], [0], "--set names policy.gamma twice"),
        (["policy.gamma"], [0], "expected KEY=VALUE"),
        (["=4,6"], [0], "expected KEY=VALUE"),
        (["seed=0,1"], [0], "expected the seeds in --seeds 0,1"),
        (["policy.hidden_sizes=[8,[4"], [0], "--set policy.hidden_sizes"),
        ([], [0, 1, 0], "--seeds names 0 twice"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(given, seeds, words):
    with pytest.raises(UserError) as caught:
        plan_trials(RECIPE, given, seeds)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seed_lists():
    assert seed_list("--seeds", "0-3,7") == [0, 1, 2, 3, 7]
    for text in ("", "a", "3-1", "-1", "1.5"):
        with pytest.raises(UserError, match="--seeds"):
            seed_list("--seeds", text)


def accepts(assignment):
    return load_recipe(RECIPE, [assignment])


def test_a_search_space_knows_whole_numbers_by_what_the_recipe_takes():
    given = [
        "policy.gamma=3..12",
        "policy.state_size=2..8",
        "algorithm.learning_rate=log:1e-4..1e-2",
        "policy.activation=relu,tanh",
        "policy.hidden_sizes=[4],[8, 8]",
    ]
    assert read_space(given, accepts) == {
        "policy.gamma": Range(3.0, 12.0, log=False, whole=False),
        "policy.state_size": Range(2.0, 8.0, log=False, whole=True),
        "algorithm.learning_rate": Range(1e-4, 1e-2, log=True, whole=False),
        "policy.activation": Choice(("relu", "tanh")),
        "policy.hidden_sizes": Choice(("[4]", "[8, 8]")),
    }


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("policy.gamma", "expected KEY=LOW..HIGH"),
        ("policy.gamma=", "expected KEY=LOW..HIGH"),
        ("policy.gamma=a..b", "--search policy.gamma was given 'a..b'"),
        ("policy.gamma=9..3", "expected LOW < HIGH"),
        ("policy.gamma=log:0..3", "expected 0 < LOW < HIGH"),
        ("policy.gamma=1..inf", "expected LOW < HIGH"),
        ("policy.gamma=-1..3", "policy.gamma is -1"),
        ("policy.gama=1..3", "Did you mean 'policy.gamma'"),
        ("policy.cell=r2dn", "at least two different values"),
        ("policy.gamma=4,4.0", "at least two different values"),
        ("seed=0..9", "--seeds is for seeds"),
    ],
)
def test_a_wrong_search_space_is_one_line_that_names_the_key(assignment, words):
    with pytest.raises(UserError) as caught:
        read_space([assignment], accepts)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_search_names_a_key_once():
    with pytest.raises(UserError, match=r"--search names policy\.gamma twice"):
        read_space(["policy.gamma=1..3", "policy.gamma=4..5"], accepts)
