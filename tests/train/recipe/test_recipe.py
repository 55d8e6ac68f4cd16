"""Recipes: what is wrong is said in one line that names the key, before anything is written."""

import pytest
from soak_cases import some_soak

from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, SchemaError, UnknownNameError
from robust_policies.evaluation.rehearsal import in_small
from robust_policies.files import assets
from robust_policies.policies import load_policy
from robust_policies.train import load_recipe, parse_recipe, train
from robust_policies.train.environment import make_env

MINIMAL = {"task": {"id": "robust_policies/Pendulum-v0"}, "algorithm": {"total_steps": 1000}}
EACH_KIND = (
    "cartpole_youla_r2dn",
    "doyle_lqg_youla_r2dn_apg",
    "hopper_r2dn",
    "linear_r2dn",
    "pendulum_gru",
    "pendulum_lstm",
    "pendulum_mlp",
    "pendulum_no_velocity_r2dn",
    "pendulum_r2dn_adversarial",
    "pendulum_r2dn_contracting",
    "pendulum_ren_gamma6",
    "quadrotor_planar_mlp",
    "pendulum_r2dn_apg",
)
"""A recipe of each algorithm, cell, guarantee and wrapper; the others differ from one of these by task or numbers."""


@pytest.mark.parametrize("name", some_soak(assets.recipe_names(), *EACH_KIND))
def test_every_recipe_that_ships_trains_and_acts(name, tmp_path):
    tiny = ["checkpoints.evaluate_episodes=2", "task.kwargs={max_episode_steps: 20}"]
    recipe = in_small(load_recipe(name, tiny))
    assert train(recipe, tmp_path / "run").num_timesteps > 0
    env = make_env(recipe, 2, 0, "cpu", training=False)
    actions, _ = load_policy(tmp_path / "run").predict(env.reset(), deterministic=True)
    assert actions.shape == (2, *env.action_space.shape)
    env.close()


@pytest.mark.parametrize("name", assets.recipe_names())
def test_every_recipe_that_ships_states_a_target_that_its_training_can_meet(name):
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.target is not None
    assert recipe.checkpoints.evaluate_every <= recipe.target.steps <= recipe.algorithm.total_steps


def test_a_resolved_recipe_is_a_recipe():
    recipe = load_recipe("pendulum_r2dn_gamma3")
    assert parse_recipe(recipe.resolved(), "again") == recipe


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("policy.gama=4", ["unknown key 'policy.gama'", "Did you mean 'policy.gamma'"]),
        ("algorithm.total_timesteps=4", ["Did you mean 'algorithm.total_steps'"]),
        ("algorithm.gamma=0.9", ["Did you mean 'algorithm.discount'"]),
        ("polcy.gamma=4", ["unknown key 'polcy'", "Did you mean 'policy'"]),
        ("policy.gamma=-4", ["policy.gamma is -4", "greater than 0"]),
        ("policy.rate=1.5", ["policy.rate is 1.5", "less than or equal to 1"]),
        ("policy.state_size=0", ["policy.state_size is 0", "greater than or equal to 1"]),
        ("task.num_envs=many", ["task.num_envs is 'many'", "integer"]),
        ("algorithm.learning_rate=fast", ["algorithm.learning_rate is 'fast'", "lin_"]),
        ("algorithm.learning_rate=-1", ["algorithm.learning_rate is -1"]),
        ("algorithm.batch_size=100000", ["at most task.num_envs * algorithm.n_steps"]),
        ("policy.critic=big", ["policy.critic is 'big'", "own, shared, mlp"]),
        ("policy.gamma=.nan", ["policy.gamma is nan", "finite"]),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(assignment, words):
    with pytest.raises((InvalidValueError, UnknownNameError)) as caught:
        load_recipe("pendulum_r2dn_gamma6", [assignment])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("assignment", ["policy.gamma", "=4", "policy..gamma=4", "description.x=3"])
def test_an_assignment_of_the_wrong_form_is_refused(assignment):
    with pytest.raises(InvalidValueError, match="--set was given"):
        load_recipe("pendulum_r2dn_gamma6", [assignment])


def test_values_of_set_are_yaml():
    recipe = load_recipe(
        "pendulum_r2dn_gamma6", ["policy.gamma=null", "policy.hidden_sizes=[8, 8]", "algorithm.learning_rate=1e-3"]
    )
    assert recipe.policy.gamma is None
    assert recipe.policy.hidden_sizes == [8, 8]
    assert recipe.algorithm.learning_rate == 1e-3


def test_a_whole_number_may_be_written_with_an_exponent_or_a_point(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "schema: 1.0\ntask: {id: robust_policies/Pendulum-v0, num_envs: 1e1}\n"
        "policy: {hidden_sizes: [1.6e1, 8.0]}\nalgorithm: {total_steps: 1e5}\n"
    )
    recipe = load_recipe(file, ["checkpoints.every=2.048e3", "evaluation.seeds=[0.0, 1e0]"])
    found = [recipe.algorithm.total_steps, recipe.task.num_envs, recipe.checkpoints.every, *recipe.evaluation.seeds]
    assert found == [100_000, 10, 2048, 0, 1] and all(type(number) is int for number in found)
    assert recipe.policy.hidden_sizes == [16, 8]
    # Where a number is expected, whole or not, it stays what it was.
    assert type(load_recipe(file, ["algorithm.learning_rate=1e0"]).algorithm.learning_rate) is float
    for wrong in ("2.5", "1e400", ".nan", "1e-3"):
        with pytest.raises(InvalidValueError, match=r"algorithm.total_steps is .*; expected"):
            load_recipe(file, [f"algorithm.total_steps={wrong}"])


def test_a_syntax_error_comes_with_its_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("schema: 1\ntask: {id: x\n")
    with pytest.raises(CorruptFileError, match="line 3"):
        load_recipe(path)


def test_a_key_given_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(CorruptFileError, match="'seed' is there twice"):
        load_recipe(path)


def test_a_newer_schema_asks_for_an_update():
    with pytest.raises(SchemaError, match="schema 99"):
        parse_recipe({"schema": 99, **MINIMAL}, "future.yaml")


def test_a_missing_file_and_a_missing_key_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InvalidValueError, match=r"algorithm\.total_steps is missing"):
        parse_recipe({"task": {"id": "x"}, "algorithm": {}}, "short.yaml")
