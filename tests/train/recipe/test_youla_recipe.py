"""Recipes with a `youla` section: training inside the wrapper, a YoulaPolicy in the run folder, and what is refused."""

import json

import gymnasium
import pytest
import torch
from soak_cases import some_soak
from stopping import stop_at
from typer.testing import CliRunner

from robust_policies.certificates import Certificate
from robust_policies.cli.app import app
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError
from robust_policies.evaluation.certify import certify_run, check_run
from robust_policies.policies import YoulaOptions, YoulaPolicy, load_policy
from robust_policies.train import TrainingInterruptedError, load_recipe, train
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.apg.run import make_actor, task_plant
from robust_policies.train.environment import make_env
from robust_policies.train.recipe.youla import YoulaSection

TINY = [
    "task.num_envs=4", "task.kwargs={max_episode_steps: 17}", "algorithm.total_steps=320", "algorithm.n_steps=20",
    "algorithm.batch_size=40", "algorithm.n_epochs=1", "checkpoints.every=80", "checkpoints.evaluate_every=160",
    "checkpoints.evaluate_episodes=4", "checkpoints.certify_every=0", "evaluation.episodes=2", "evaluation.seeds=[0]",
]  # fmt: skip
OWN = {
    "tensor_ppo": [],
    "recurrent_ppo": ["algorithm.name=recurrent_ppo", "algorithm.spread_episodes=false"],
    "delayed": ["youla.delay=1", "youla.quantum=0.1", "youla.reserve=0.5", "task.perturbations=[ObservationDelay: 1]"],
}


DOYLE = [
    "task.id=robust_policies/DoyleLQG-v0", "evaluation.tasks=[robust_policies/DoyleLQG-v0]", "youla.weights={}",
    "youla.region=[]", "target=null",
]  # fmt: skip


def doyle(*changes):
    return load_recipe("cartpole_youla_r2dn", [*DOYLE, *changes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("youla") / "run"
    # Linear tasks are what is certified without a search through a nonlinear residual.
    recipe = doyle(*TINY, "youla.region=[20, 20]")
    train(recipe, folder)
    certify_run(folder, steps=2)
    return recipe, folder


def test_the_run_folder_holds_a_policy_for_the_unwrapped_task(trained):
    recipe, folder = trained
    policy = load_policy(folder)
    assert isinstance(policy, YoulaPolicy) and policy.scope.kind == "linear"
    assert isinstance(load_policy(folder / "checkpoints" / "best"), YoulaPolicy)
    wrapped = make_env(recipe, 1, 7, "cpu", training=False)
    plain = gymnasium.make_vec(recipe.task.id, num_envs=1, **recipe.task.kwargs)
    seen, (observation, _) = wrapped.reset(), plain.reset(seed=7)
    state = hidden = None
    for _ in range(10):
        youla, hidden = policy.policy.predict(seen, hidden)
        action, state = policy.predict(observation, state)
        seen, reward, _, _ = wrapped.step(youla)
        observation, other, *_ = plain.step(torch.as_tensor(action))
        assert reward[0] == pytest.approx(float(other[0]), rel=1e-6)


@pytest.mark.parametrize("case", some_soak(sorted(OWN), "delayed"))
def test_a_stopped_run_ends_with_the_same_numbers(case, tmp_path):
    recipe = load_recipe("cartpole_youla_r2dn", [*TINY, *OWN[case]])
    train(recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "stopped", **stop_at(200))
    train(recipe, tmp_path / "stopped", resume=True)
    whole, stopped = (load_policy(tmp_path / name) for name in ("whole", "stopped"))
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(value, stopped.actor.state_dict()[name]), name
    if case == "delayed":
        assert whole.controller.options.delay == 1 and whole.controller.options.reserve == 0.5


@pytest.mark.usefixtures("undrawn")
def test_the_commands_work_on_the_folder(trained):
    _, folder = trained
    suite = ["--attack", "mad_pgd", "--sizes", "0,0.1"]
    certificate = Certificate.from_json(folder / "certificate.json")
    assert certificate.claim.startswith("Proven for the linear model of the closed loop")
    assert "The plant is this linear model" in certificate.claim and certificate.ratio <= 1
    for arguments, words in (
        (["certify", str(folder), "--check"], "Confirmed"),
        (["evaluate", str(folder), *suite], "the estimate was outside its region in 0 of 34 steps (0 of 2 episodes)"),
        (["report", str(folder)], "Report:"),
        (["export", str(folder), "--format", "safetensors"], "Exported:"),
        (["enjoy", str(folder), "--render", "none", "--episodes", "1"], "episode 1: return"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert words in done.output
    assert isinstance(load_policy(folder / "export"), YoulaPolicy)
    assert "disturbance to performance, linear closed loop" in (folder / "report.html").read_text()
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    assert all(row["region_exits"] == [0, 0] and len(row["saturations"]) == 2 for row in rows)
    refused = CliRunner().invoke(app, ["certify", str(folder), "--weights", "1"])
    assert isinstance(refused.exception, InvalidValueError)


def test_an_edited_closed_loop_is_noticed(trained):
    _, folder = trained
    path = folder / "certificate.json"
    content = json.loads(path.read_text())
    for entry, value in (("T0", 1.0), ("plant", "The plant is perfect.")):
        path.write_text(json.dumps({**content, "closed_loop": {**content["closed_loop"], entry: value}}))
        assert any(f"closed_loop.{entry} is" in line for line in check_run(folder))
    path.write_text(json.dumps({**content, "closed_loop": {"T0": 1.0}}))
    assert "expected converges, quantum, plant, saturation in it" in check_run(folder)[0]
    path.write_text(json.dumps(content))
    assert check_run(folder) == []


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["youla.estimator=best"], "youla.estimator is 'best'; expected one of current, predictor"),
        (["youla.reserve=1"], "youla.reserve is 1"),
        (["youla.delay=-1"], "youla.delay is -1"),
        (["youla.weights={Q: [[1, 0]]}"], "youla.weights.Q"),
        (["youla.region=[0.1, -1]"], "youla.region is [0.1, -1]"),
    ],
)
def test_a_wrong_value_is_named(assignments, words):
    with pytest.raises(InvalidValueError) as error:
        doyle(*assignments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_key_is_named():
    with pytest.raises(UnknownNameError, match=r"unknown key 'youla.estimatr'. Did you mean 'youla.estimator'"):
        doyle("youla.estimatr=current")


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["youla.region=[0.1]"], "region has 1 number(s); expected 2"),
        (["youla.limit=1000.0"], "limit is 1000"),
        (["youla.weights={Q: [1, 1, 1]}"], "Q"),
        (["task.id=Pendulum-v1"], "has no plant of this package to linearise"),
    ],
)
def test_what_does_not_fit_the_task_is_one_line_and_nothing_is_written(assignments, words, tmp_path):
    recipe = doyle(*TINY, *assignments)
    with pytest.raises(UserError) as error:
        train(recipe, tmp_path / "run")
    assert words in str(error.value) and str(error.value).startswith("youla of the recipe")
    assert not (tmp_path / "run").exists()


APG = [
    "task.num_envs=4", "task.kwargs={max_episode_steps: 30}", "algorithm.horizon=15", "algorithm.total_steps=480",
    "checkpoints.every=120", "checkpoints.evaluate_every=240", "checkpoints.evaluate_episodes=4",
    "checkpoints.certify_every=0", "evaluation.episodes=2", "evaluation.seeds=[0]",
]  # fmt: skip


def test_gradients_through_plant_and_base_controller_are_those_of_differences():
    recipe = load_recipe("doyle_lqg_youla_r2dn_apg", [*APG, "youla.delay=1", "algorithm.zero_init=false"])
    plant, limit = task_plant(recipe)
    algorithm = AnalyticPolicyGradient(
        plant, make_actor(recipe, plant, "cpu").double(), recipe.algorithm, 4, recipe.seed, limit
    )
    weight = dict(algorithm.actor.named_parameters())["body.cell.actor.body.cell.C2"]

    def objective(value):
        weight.data[0, 0] = value
        algorithm.generator.manual_seed(3)
        return algorithm.rollout(algorithm.fresh(4, algorithm.generator))[0]

    here, step = weight[0, 0].item(), 1e-2
    (gradient,) = torch.autograd.grad(objective(here), weight)
    difference = (objective(here + step) - objective(here - step)).item() / (2 * step)
    # Inputs are sent in float32, the cost is of order 1e4.
    assert difference == pytest.approx(float(gradient[0, 0]), rel=1e-3) and abs(difference) > 1.0


def test_analytic_gradients_learn_through_the_base_controller_and_continue_exactly(tmp_path):
    recipe = load_recipe("doyle_lqg_youla_r2dn_apg", APG)
    train(recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "stopped", **stop_at(200))
    train(recipe, tmp_path / "stopped", resume=True)
    whole, stopped = (load_policy(tmp_path / name) for name in ("whole", "stopped"))
    assert isinstance(whole, YoulaPolicy) and whole.design.estimator == "predictor"
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(value, stopped.actor.state_dict()[name]), name
    plain = gymnasium.make_vec(recipe.task.id, num_envs=2, **recipe.task.kwargs)
    observation, _ = plain.reset(seed=1)
    action, _ = whole.predict(observation)
    assert plain.single_action_space.contains(action[0]) and certify_run(tmp_path / "whole", steps=2).status == "PASS"


def test_rounded_inputs_have_no_analytic_gradient():
    with pytest.raises(InvalidValueError, match=r"youla.quantum is 0.1 with algorithm.name apg"):
        load_recipe("doyle_lqg_youla_r2dn_apg", ["youla.quantum=0.1"])


def test_a_section_has_the_options_of_the_wrapper_with_their_defaults():
    assert YoulaSection().options() == YoulaOptions()
    options = YoulaSection(reserve=0.2, limit=3.0, quantum=0.1, delay=2, reference=[1], region=[0.5]).options()
    assert options == YoulaOptions(0.2, 3.0, 0.1, 2, (1,), (0.5,))
