"""Analytic policy gradients: the gradient, what training reaches, run folders, resuming, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from event_files import scalars
from stopping import stop_at

from robust_policies.envs.task import load_plant
from robust_policies.errors import DivergedError, InvalidValueError, UnknownNameError
from robust_policies.evaluation import certify_run
from robust_policies.networks import make_cell
from robust_policies.policies import load_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.train import TrainingInterruptedError, load_recipe, open_run, train
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.apg.critic import Experience, ValueTail, follow, lambda_returns, target_of
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.rates import rate_at
from robust_policies.train.run.checkpoints import checkpoints_in

TINY = [
    "task.num_envs=8",
    "policy.state_size=4",
    "policy.features=4",
    "policy.hidden_sizes=[4]",
    "algorithm.horizon=20",
    "algorithm.total_steps=1600",
    "checkpoints.every=480",
    "checkpoints.evaluate_every=800",
    "checkpoints.evaluate_episodes=4",
    "checkpoints.certify_every=0",
    "evaluation.episodes=3",
    "evaluation.seeds=[0]",
    "evaluation.sizes=[0.0, 0.2]",
    "evaluation.tasks=[robust_policies/Pendulum-v0]",
    f"evaluation.suite={Path(__file__).parents[2] / 'tiny_suite.yaml'}",
]


def recipe_named(name="pendulum_r2dn_apg", *more, seed=None):
    return load_recipe(name, [*TINY, *more], seed)


def algorithm_for(task, *, num_envs=6, scale=None, cell_kwargs=None, dtype=torch.float32, **settings):
    plant = load_plant(task)
    options = {"state_size": 3, "features": 4, "hidden_sizes": [5], "activation": "tanh"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = make_cell("r2dn", plant.observation_size, plant.action_size, **(cell_kwargs or options))
    head = MeanHead(plant.action_size, plant.action_size, False, scale)
    actor = Actor(ScaledCell(cell, Scaling(plant.observation_size)), head).to(dtype)
    return AnalyticPolicyGradient(plant, actor, ApgSection(total_steps=10**6, **settings), num_envs)


def objective(algorithm):
    """Return the objective of the next horizon, leaving the algorithm as it was."""
    before = algorithm.generator.get_state()
    value, _, _ = algorithm.rollout(algorithm.world)
    algorithm.generator.set_state(before)
    return value


@pytest.mark.parametrize(
    ("task", "value_tail", "horizon"),
    [("linear", False, 12), ("linear", True, 12), ("youla_example", False, 30), ("pendulum", True, 10)],
)
def test_the_gradient_is_that_of_finite_differences(task, value_tail, horizon):
    # So small that no action reaches its limit, where the gradient is not the derivative.
    algorithm = algorithm_for(
        task, scale=0.05, dtype=torch.float64, value_tail=value_tail, horizon=horizon, discount=0.97
    )
    if value_tail:
        # Of the algorithm's modules only the value is in float32, whose rounding a difference quotient would magnify.
        algorithm.value.double()
        algorithm.target.double()
    algorithm.world = algorithm.world._replace(memory=algorithm.world.memory.double())
    objective(algorithm).backward()
    draw = torch.Generator().manual_seed(1)
    for parameter in algorithm.actor.parameters():
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        slope = float((parameter.grad * direction).sum())
        step, values = 1e-6, []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(float(objective(algorithm)))
                parameter.sub_(sign * step * direction)
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_observations_computed_ahead_change_nothing_but_the_time_it_takes(monkeypatch):
    found = []
    for ahead in (True, False):
        algorithm = algorithm_for("youla_example", dtype=torch.float64, value_tail=False, horizon=60)
        monkeypatch.setattr(type(algorithm.plant), "observes_actions", not ahead)
        algorithm.world = algorithm.world._replace(memory=algorithm.world.memory.double())
        value, _, world = algorithm.rollout(algorithm.world)
        value.backward()
        found.append([value.detach(), *world.detached(), *(p.grad for p in algorithm.actor.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_nothing_flows_back_past_the_horizon_and_everything_goes_on_from_there():
    algorithm = algorithm_for("linear", value_tail=False, horizon=5)
    first = algorithm.world
    algorithm.update(1.0)
    after = algorithm.world
    assert not any(value.requires_grad for value in after)
    assert after.elapsed.tolist() == [5] * 6
    assert not torch.equal(after.state, first.state)
    assert bool(after.memory.abs().max() > 0)
    algorithm.update(1.0)
    assert algorithm.world.elapsed.tolist() == [10] * 6


def test_an_episode_at_its_time_limit_starts_again_with_an_empty_memory():
    algorithm = algorithm_for("linear", value_tail=False, horizon=200)
    algorithm.update(1.0)
    assert algorithm.world.elapsed.tolist() == [0] * 6
    assert not algorithm.world.memory.any()
    assert [length for _, length in algorithm.episodes] == [200] * 6
    assert all(total < 0 for total, _ in algorithm.episodes)


def test_terminated_episodes_end_alone_and_gain_nothing_from_the_value():
    algorithm = algorithm_for("cartpole_continuous", horizon=60, value_tail=True, discount=0.99)
    algorithm.world = algorithm.world._replace(elapsed=torch.zeros(6, dtype=torch.int64))
    with torch.no_grad():
        for parameter in algorithm.target.parameters():
            parameter.zero_()
        algorithm.target.network[-1].bias.fill_(1e6)
        value, experience, _ = algorithm.rollout(algorithm.world)
    assert bool(experience.terminated.any())
    assert torch.equal(experience.terminated, experience.ended)
    # By hand: of every environment the rewards of all its steps, each discounted since its own episode's start, and
    # the value (1e6) once, at the horizon's end, unless the episode terminated there.
    total = 0.0
    for env in range(6):
        age = 0
        for t in range(60):
            total += 0.99**age * float(experience.rewards[t, env])
            age = 0 if bool(experience.ended[t, env]) else age + 1
        total += 0.0 if bool(experience.terminated[-1, env]) else 0.99**age * 1e6
    assert float(value) == pytest.approx(total / 6 / 60, rel=1e-6)


def test_the_ages_of_episodes_are_spread_where_a_value_stands_for_the_rest():
    assert algorithm_for("pendulum", num_envs=4, value_tail=True).world.elapsed.tolist() == [0, 50, 100, 150]
    assert algorithm_for("pendulum", num_envs=4, value_tail=False).world.elapsed.tolist() == [0, 0, 0, 0]


def test_episodes_that_began_in_the_middle_are_not_reported():
    algorithm = algorithm_for("pendulum", num_envs=20, value_tail=True, horizon=16)
    for _ in range(2):
        algorithm.update(1.0)
    assert not algorithm.episodes, "after 32 steps no episode of 200 has been seen whole"
    for _ in range(12):
        algorithm.update(1.0)
    assert algorithm.episodes and {length for _, length in algorithm.episodes} == {algorithm.limit}
    tensors = algorithm.tensors()
    del tensors["world.whole"]
    algorithm.load_tensors(tensors)
    assert bool(algorithm.world.whole.all()), "checkpoints of earlier versions can be continued"


def test_lambda_returns_by_hand():
    rewards = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    values = torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    flags = torch.tensor([[False], [True], [False], [False]])
    nothing = torch.zeros(4, 1, 1)
    stopped = Experience(nothing, nothing, rewards, torch.zeros_like(flags), flags, nothing)
    last = 8 + 0.5 * 40
    third = 4 + 0.5 * (0.75 * 30 + 0.25 * last)
    second = 2 + 0.5 * 20
    first = 1 + 0.5 * (0.75 * 10 + 0.25 * second)
    assert lambda_returns(stopped, values, 0.5, 0.25).flatten().tolist() == pytest.approx([first, second, third, last])
    ended = Experience(nothing, nothing, rewards, flags, flags, nothing)
    first = 1 + 0.5 * (0.75 * 10 + 0.25 * 2)
    assert lambda_returns(ended, values, 0.5, 0.25).flatten().tolist() == pytest.approx([first, 2.0, third, last])


def test_a_value_normalises_by_all_it_has_seen_and_its_target_follows():
    draw = torch.Generator().manual_seed(0)
    data = 5.0 + 3.0 * torch.randn(40, 7, 2, generator=draw)
    value = ValueTail(2, [8])
    for part in data.split((10, 25, 5)):
        value.observe(part)
    flat = data.flatten(0, 1)
    assert torch.allclose(value.mean, flat.mean(0), atol=1e-5)
    assert torch.allclose(value.deviation, flat.std(0, unbiased=False), atol=1e-4)
    target = target_of(value)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in target.parameters()]
    follow(target, value, 0.25)
    for old, new in zip(before, target.parameters(), strict=True):
        assert torch.allclose(new - old, torch.full_like(new, 0.25), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "remaining", "rate"),
    [
        (2e-3, 0.1, 2e-3),
        ("lin_1e-2", 0.25, 2.5e-3),
        ("cos_1e-2", 1.0, 1e-2),
        ("cos_1e-2", 0.5, 5e-3),
        ("drop_5e-3", 0.26, 5e-3),
        ("drop_5e-3", 1 - 240 / 320, 5e-4),
    ],
)
def test_learning_rates_fall_as_they_say(value, remaining, rate):
    assert rate_at(value, remaining) == pytest.approx(rate, rel=1e-9)


def test_beyond_a_limit_the_gradient_passes_only_where_it_leads_back():
    algorithm = algorithm_for("pendulum", value_tail=False, horizon=2)
    outputs = torch.tensor([[5.0], [5.0], [-5.0], [-5.0], [0.5]], requires_grad=True)
    action = algorithm._action(outputs, None)
    assert action.flatten().tolist() == [2.0, 2.0, -2.0, -2.0, 0.5]
    action.backward(torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64))
    assert outputs.grad.flatten().tolist() == [1.0, 0.0, 0.0, -1.0, 1.0]


def test_the_youla_example_costs_far_less_after_a_few_episodes():
    algorithm = algorithm_for(
        "youla_example",
        num_envs=16,
        cell_kwargs={
            "state_size": 6, "features": 12, "hidden_sizes": [16], "activation": "tanh", "init": "long_memory",
        },
        value_tail=False, horizon=200, discount=1.0, learning_rate=1e-2, max_grad_norm=10.0,
    )  # fmt: skip
    for _ in range(24):
        algorithm.update(1.0)
    mean, length = algorithm.evaluate(64, seed=99)
    # Doing nothing costs 4.3 a step; without the limit on u about 1.2 remains.
    assert length == 800
    assert -mean / 800 < 2.4


def test_evaluation_agrees_with_the_policy_in_its_environment():
    gymnasium = pytest.importorskip("gymnasium")
    algorithm = algorithm_for("pendulum", value_tail=False, horizon=10)
    policy = algorithm.deployed()
    env = gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=50)
    observation, _ = env.reset(seed=3)
    starts = env.unwrapped.state
    state, total = None, 0.0
    for _ in range(200):
        action, state = policy.predict(observation.numpy(), state)
        observation, reward, *_ = env.step(action)
        total += float(reward.double().mean())
    env.close()
    plain = algorithm.fresh
    algorithm.fresh = lambda count, generator: plain(count, generator)._replace(
        state=starts, observation=algorithm.plant.observe(starts, algorithm.params)
    )
    mean, _ = algorithm.evaluate(50, seed=0)
    assert mean == pytest.approx(total, rel=1e-4)


def test_a_value_tail_teaches_the_pendulum():
    algorithm = algorithm_for(
        "pendulum", num_envs=32, scale=2.0, cell_kwargs={"state_size": 4, "features": 8, "hidden_sizes": [8]},
        horizon=16, discount=0.95, learning_rate=1e-2,
    )  # fmt: skip
    before, _ = algorithm.evaluate(64, seed=99)
    for _ in range(80):
        algorithm.update(1.0)
    after, _ = algorithm.evaluate(64, seed=99)
    assert after > before + 200


def test_a_run_folder_has_its_files_its_scalars_and_a_policy_that_passes(tmp_path):
    recipe = recipe_named()
    result = train(recipe, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert result.num_timesteps == 1600
    assert run.read_recipe() == recipe
    assert run.read_provenance()["num_timesteps"] == 1600
    tags = scalars(run)
    for tag in ("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss", "train/gradient_norm",
                "train/learning_rate", "train/value_loss", "train/n_updates", "eval/mean_reward"):  # fmt: skip
        assert tags[tag], tag
    assert [step for step, _ in tags["eval/mean_reward"]] == [800, 1600]
    assert [step for step, _ in tags["train/loss"]] == list(range(160, 1601, 160))
    assert result.best_reward == pytest.approx(max(value for _, value in tags["eval/mean_reward"]), rel=1e-5)
    action, state = load_policy(run.path).predict(np.array([[0.5, 0.8, 1.0]], dtype=np.float32))
    assert action.shape == (1, 1)
    assert state.shape == (1, 4)
    assert certify_run(run.path, steps=5).status == "PASS"
    assert sorted(path.name for path in run.path.rglob("*.zip")) == []


def test_an_interrupted_and_resumed_run_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path):
    recipe = recipe_named()
    train(recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError, match="--resume"):
        train(recipe, tmp_path / "run", **stop_at(600))
    checkpoint = checkpoints_in(tmp_path / "run" / "checkpoints")[-1]
    assert checkpoint.name == "step_000000000640"
    assert not (tmp_path / "run" / "policy.json").exists()
    assert json.loads((checkpoint / "state.json").read_text())["progress"]["n_updates"] == 4
    result = train(recipe, tmp_path / "run", resume=True)
    assert result.num_timesteps == 1600
    names = ("policy.safetensors", "checkpoints/step_000000001600/training.safetensors")
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        short = ("algorithm.total_steps=480", "task.kwargs={max_episode_steps: 40}")
        train(recipe_named("youla_example_r2dn_apg", *short, seed=seed), tmp_path / name)
    weights = [(tmp_path / name / "policy.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_divergence_stops_before_the_weights_are_spoilt_and_says_where():
    algorithm = algorithm_for("linear", value_tail=False, horizon=5)
    algorithm.update(1.0)
    weights = [parameter.clone() for parameter in algorithm.actor.parameters()]
    algorithm.world = algorithm.world._replace(state=torch.full_like(algorithm.world.state, float("nan")))
    with pytest.raises(DivergedError, match=r"in update 2, .*the environment's reward in step 1 .* was nan") as caught:
        algorithm.update(1.0)
    assert "learning_rate" not in str(caught.value)
    for before, after in zip(weights, algorithm.actor.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["task.id=robust_policies/Hopper-v0"], InvalidValueError, "mujoco task, through which no gradients flow"),
        (["task.id=Pendulum-v1"], InvalidValueError, "equations are not known here.*recurrent_ppo"),
        (["task.id=robust_policies/CartPole-v0"], InvalidValueError, "CartPoleContinuous-v0"),
        (["task.id=robust_policies/Pendulm-v0"], UnknownNameError, "Did you mean 'robust_policies/Pendulum-v0'"),
        (["task.perturbations=[{ObservationDelay: 2}]"], InvalidValueError, "expected none"),
        (["task.kwargs={compile: true}"], InvalidValueError, "max_episode_steps and task alone"),
        (["policy.cell=r2dm"], UnknownNameError, "Did you mean 'r2dn'"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_before_anything_is_written(overrides, error, words, tmp_path):
    with pytest.raises(error, match=words) as caught:
        train(recipe_named("pendulum_r2dn_apg", *overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("algorithm.name=agp", "Did you mean 'apg'"),
        ("algorithm.n_steps=4", "unknown key 'algorithm.n_steps'"),
        ("algorithm.horizon=0", "algorithm.horizon is 0"),
        ("algorithm.learning_rate=exp_1", "lin_NUMBER, cos_NUMBER or drop_NUMBER"),
        ("algorithm.critic_sizes=[]", "widths of at least 1"),
        ("policy.critic=own", None),
        ("policy.critic=mlp", "is of recurrent_ppo"),
    ],
)
def test_a_wrong_setting_is_named(assignment, words):
    if words is None:
        assert load_recipe("pendulum_r2dn_apg", [assignment])
        return
    with pytest.raises((InvalidValueError, UnknownNameError)) as caught:
        load_recipe("pendulum_r2dn_apg", [assignment])
    assert words in str(caught.value)


def test_episodes_may_be_shortened(tmp_path):
    recipe = recipe_named("youla_example_r2dn_apg", "task.kwargs={max_episode_steps: 40}")
    train(recipe, tmp_path / "run")
    lengths = {value for _, value in scalars(open_run(tmp_path / "run"))["rollout/ep_len_mean"]}
    assert lengths == {40.0}
