"""Attacks on observations: budgets, common random numbers, gains, and that a search beats chance."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.errors import DivergedError, InvalidValueError, UnknownNameError
from robust_policies.evaluation.attacks import ATTACKS, NORMS, attack_options, prepare_attack, why_not
from robust_policies.evaluation.attacks.budget import Ball, Budget
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.networks import R2DN, GRUCell, Lipschitz, LSTMCell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy

OURS, THEIRS = "robust_policies/Pendulum-v0", "Pendulum-v1"
SMALL = {
    "random": {},
    "mad_pgd": {"steps": 3},
    "critic_pgd": {"steps": 2, "updates": 20},
    "sequence_pgd": {"steps": 3, "window": 12, "replan": 6},
    "closed_loop_pgd": {"steps": 2, "window": 10, "replan": 5},
    "learned": {"train_steps": 256, "num_envs": 8, "rollout": 16},
    "transfer": {"attack": "sequence_pgd", "options": {"steps": 3, "window": 12}},
}


def make_policy(cell=None, seed=0):
    torch.manual_seed(seed)
    cell = cell or R2DN(3, 4, 1, 6, (8,), guarantee=Lipschitz(4.0))
    actor = Actor(ScaledCell(cell, Scaling(3)), MeanHead(1, 1, False, 1.0))
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))


def damper(gain=1.0):
    """A policy that balances the pendulum from near upright: torque -gain (9 sin + 2 speed), nothing remembered."""
    policy = make_policy()
    cell = R2DN(3, 4, 1, 6, (8,))
    with torch.no_grad():
        for parameter in (cell.C2, cell.D21, cell.by):
            parameter.zero_()
        cell.D22.copy_(gain * torch.tensor([[0.0, -9.0, -2.0]]))
    policy.actor.body = ScaledCell(cell, Scaling(3))
    return policy


def ready(name, policy, env_id, norm="per_step_l2", sizes=(0.3,), **kwargs):
    options = dict(SMALL[name]) | ({"policy": make_policy(seed=5)} if name == "transfer" else {})
    kwargs |= {"sizes": sizes, "episodes": 2, "max_steps": 40}
    prepared = prepare_attack(name, policy, env_id, norm, options, [91], **kwargs)
    return {"options": options, "prepared": prepared, "norm": norm}


def spent(found):
    shift = found.recorded["perturbed"].astype(np.float64) - found.recorded["observations"].astype(np.float64)
    return shift


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        (name, norm)
        if norm == "per_step_l2" or name in ("random", "sequence_pgd")
        else pytest.param(name, norm, marks=pytest.mark.soak)
        for name in sorted(ATTACKS)
        for norm in NORMS
    ],
)
def test_no_attack_exceeds_its_budget_nor_the_certified_gain(name, norm):
    policy, sizes = make_policy(), [0.4, 0.0, 0.1]
    given = ready(name, policy, OURS, norm, sizes)
    found = run_episodes(policy, OURS, name, sizes, 2, 3, max_steps=30, record=2, **given)
    shift = spent(found)
    length = {
        "per_step_l2": np.linalg.norm(shift, axis=-1).max(axis=0),
        "per_step_linf": np.abs(shift).max(axis=(0, -1)),
        "total_l2": np.sqrt((shift**2).sum(axis=(0, -1))),
    }[norm]
    assert (length <= np.array(sizes)[:, None]).all() and (length[[0, 2]] > 0).all()
    assert np.isnan(found.gains[1]).all() and np.isnan(found.deviations[1]).all()
    assert (found.gains[[0, 2]] <= 4.0).all() and (found.gains[[0, 2]] > 0).all()
    assert (found.deviations[[0, 2]] <= found.gains[[0, 2]] + 1e-12).all()
    assert found.attack == name and not found.failed.any()
    again = run_episodes(policy, OURS, name, sizes, 2, 3, max_steps=30, **given)
    assert np.array_equal(found.returns, again.returns)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"closed_loop_pgd"}))
def test_gymnasiums_environments_are_attacked_too(name):
    policy = make_policy()
    given = ready(name, policy, THEIRS)
    found = run_episodes(policy, THEIRS, name, [0.3], 2, 0, max_steps=15, record=1, **given)
    assert np.isfinite(found.returns).all() and np.abs(spent(found)).max() > 0


def test_episodes_begin_alike_at_every_size_and_for_every_attack():
    starts = [
        run_episodes(make_policy(), OURS, kind, [0.0, 0.3], 3, 7, max_steps=5, record=3).recorded["observations"][0]
        for kind in ("uniform", "random", "mad_pgd", "sequence_pgd")
    ]
    for start in starts:
        assert np.array_equal(start[0], start[1]) and np.array_equal(start, starts[0])


def upright(kind, sizes, policy=None, episodes=8, **kwargs):
    """Episodes of 60 steps of a pendulum that starts near upright."""
    return run_episodes(
        policy or damper(), OURS, kind, sizes, episodes, 0, max_steps=60, env_kwargs={"task": near_upright()}, **kwargs
    )


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    near_upright.folder = tmp_path_factory.mktemp("task")


def near_upright():
    import yaml

    from robust_policies.envs.task import task_file

    path = near_upright.folder / "task.yaml"
    if not path.exists():
        content = yaml.safe_load(task_file("pendulum").read_text())
        content["reset"] = {"angle": 0.1, "speed": 0.1}
        path.write_text(yaml.safe_dump(content))
    return str(near_upright.folder)


def test_searches_beat_random_noise_on_a_balanced_pendulum():
    nominal = upright("random", [0.0]).returns.mean()
    random = upright("random", [0.2]).returns.mean()
    assert random < nominal
    for name in ("sequence_pgd", "closed_loop_pgd"):
        options = {"objective": "directed"} if name == "sequence_pgd" else {"steps": 6}
        searched = upright(name, [0.2], options=options).returns.mean()
        assert nominal - searched > 3 * (nominal - random), name


class Delayed(GRUCell):
    """Its action is mostly the sum of what it has read before this step, and a little of this step's observation."""

    def step(self, explicit, input, state):
        read = 0.1 * input.sum(-1, keepdim=True)
        return state + 0.2 * read, 0.9 * state + 0.1 * read

    def run(self, explicit, inputs, state, starts):
        return self.unroll(explicit, inputs, state, starts)


def test_the_sequence_attack_goes_through_the_recurrent_state():
    policy = make_policy(Delayed(3, 1, 1))
    sequence = run_episodes(policy, OURS, "sequence_pgd", [0.2], 4, 0, max_steps=40, options={"objective": "directed"})
    blind = run_episodes(policy, OURS, "mad_pgd", [0.2], 4, 0, max_steps=40, options={"steps": 10})
    # Pushes to one side add up to 0.1 (0.2 + 0.1 / 0.1) sqrt(3), random signs to less than a third of that.
    assert (sequence.gains > 0.15).all() and (sequence.gains > 1.5 * blind.gains).all()


def test_a_total_budget_is_split_where_it_counts():
    options = {"steps": 6, "window": 0, "replan": 60}
    searched = upright("closed_loop_pgd", [2.0], norm="total_l2", options=options, record=1)
    random = upright("random", [2.0], norm="total_l2")
    assert searched.returns.mean() < random.returns.mean()
    effort = np.linalg.norm(spent(searched)[:, 0, 0], axis=-1)
    assert effort.max() > 1.5 * effort.mean()


@pytest.mark.parametrize("name", ["sequence_pgd", "closed_loop_pgd"])
def test_of_several_rehearsals_the_worst_is_played(name):
    options = {"steps": 2, "window": 10, "replan": 10, "restarts": 1}
    once, often = (
        upright(name, [0.4, 0.0, 0.2], episodes=3, options={**options, "plays": plays}).returns for plays in (1, 2)
    )
    assert (often <= once + 1e-6).all() and np.array_equal(often[1], once[1])
    assert (often[0] <= often[2] + 1e-6).all() and (often[2] <= often[1] + 1e-6).all()


def test_the_last_reward_alone_can_be_the_target():
    options = {"objective": "last_reward", "window": 20, "replan": 20, "restarts": 1}
    assert upright("closed_loop_pgd", [0.2], options=options).returns.mean() < upright("random", [0.0]).returns.mean()


@pytest.mark.parametrize(
    "env_id", ["CartPoleContinuous", "Quadrotor", "QubeServo", "DCMotor", "DoyleLQG", "YoulaExample"]
)
def test_gradients_flow_through_our_other_plants(env_id):
    env = gymnasium.make(f"robust_policies/{env_id}-v0")
    observations, actions = env.observation_space, env.action_space
    torch.manual_seed(0)
    nu, na = observations.shape[0], actions.shape[0]
    actor = Actor(ScaledCell(R2DN(nu, 4, na, 6, (8,), guarantee=Lipschitz(4.0)), Scaling(nu)), MeanHead(na, na, False))
    policy = DeployedPolicy(actor, observations, actions)
    env_id, options = f"robust_policies/{env_id}-v0", SMALL["closed_loop_pgd"]
    found = run_episodes(policy, env_id, "closed_loop_pgd", [0.0, 0.2], 2, 0, max_steps=12, options=options)
    assert np.isfinite(found.returns).all() and (found.gains[1] > 0).all() and (found.gains[1] <= 4.0).all()


def test_lstm_policies_are_attacked():
    found = run_episodes(make_policy(LSTMCell(3, 8, 1)), OURS, "sequence_pgd", [0.2], 2, 0, max_steps=20)
    assert (found.gains > 0).all()


class Ends(gymnasium.Env):
    """Ends after as many steps as its seed's last digit says, plus one; NaN rewards come first if `broken`."""

    observation_space = spaces.Box(-np.array([1, 1, 8], np.float32), np.array([1, 1, 8], np.float32))
    action_space = spaces.Box(-2.0, 2.0, (1,))

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 1 + (self.np_random_seed or 0) % 10
        self.bad = self.broken and self.left == 2
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.left -= 1
        reward = float("nan") if self.bad else 1.0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), reward, self.left == 0, False, {}


gymnasium.register("attack_tests/Ends-v0", Ends, max_episode_steps=30)


@pytest.mark.parametrize("name", ["random", "mad_pgd", "sequence_pgd"])
def test_episodes_that_end_early_count_until_there(name):
    found = run_episodes(make_policy(), "attack_tests/Ends-v0", name, [0.0, 0.3], 4, 0, record=4)
    assert np.array_equal(found.lengths, [[1, 2, 3, 4]] * 2) and np.array_equal(found.returns, found.lengths)
    assert (found.gains[1] <= 4.0).all() and (found.gains[1] > 0).all()
    assert found.recorded["rewards"].sum(axis=0).tolist() == found.returns.tolist()


@pytest.mark.filterwarnings("ignore:.*The reward is a NaN value")
def test_a_broken_episode_is_marked_and_the_others_go_on():
    found = run_episodes(
        make_policy(), "attack_tests/Ends-v0", "sequence_pgd", [0.3], 4, 0, env_kwargs={"broken": True}
    )
    assert found.failed.tolist() == [[False, True, False, False]]
    assert np.isnan(found.returns[0, 1]) and found.returns[0, [0, 2, 3]].tolist() == [1, 3, 4]


@pytest.mark.parametrize("name", ["random", "sequence_pgd", "closed_loop_pgd"])
def test_a_policy_that_gives_nan_is_named(name):
    policy = make_policy()
    policy.actor.head.scale.fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN"):
        run_episodes(policy, OURS, name, [0.1], 2, 0, options=SMALL[name], max_steps=10)


def test_wrong_settings_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'steps'"):
        run_episodes(make_policy(), OURS, "mad_pgd", [0.1], 1, 0, options={"step": 3})
    with pytest.raises(InvalidValueError, match="steps is 0"):
        run_episodes(make_policy(), OURS, "mad_pgd", [0.1], 1, 0, options={"steps": 0})
    with pytest.raises(UnknownNameError, match="total_l2"):
        run_episodes(make_policy(), OURS, "random", [0.1], 1, 0, norm="total")
    with pytest.raises(UnknownNameError, match="closed_loop_pgd"):
        run_episodes(make_policy(), OURS, "closed_loop", [0.1], 1, 0)
    with pytest.raises(InvalidValueError, match="sequence_pgd"):
        run_episodes(make_policy(), THEIRS, "closed_loop_pgd", [0.1], 1, 0)
    with pytest.raises(InvalidValueError, match="prepare_attack"):
        run_episodes(make_policy(), OURS, "learned", [0.1], 1, 0)
    assert why_not("closed_loop_pgd", OURS) is None and "mujoco" in (
        why_not("closed_loop_pgd", "robust_policies/Hopper-v0") or ""
    )
    assert attack_options("mad_pgd").model_fields["steps"].description


def test_balls_contain_what_is_projected_and_the_steepest_point_is_furthest():
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    for norm in NORMS:
        ball = Ball(norm, size)
        gradient = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
        inside = ball.project(3 * torch.randn(6, 3, 4, generator=generator, dtype=torch.float64))
        furthest = ball.steepest(gradient)
        for point in (inside, furthest):
            assert (ball.length(point) <= size.reshape(1, 3, 1) + 1e-12).all()
            assert torch.allclose(ball.project(point), point)
        value = [(gradient * point).sum(dim=(0, 2)) for point in (inside, furthest)]
        assert (value[0] <= value[1] + 1e-12).all()


def test_the_account_of_a_total_budget_is_never_overdrawn():
    budget = Budget("total_l2", torch.tensor([1.0, 0.2]), horizon=50)
    observation = 8 * torch.ones(2, 3)
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        total += (budget.apply(observation, torch.full((2, 3), 0.1)).double() - 8).square().sum(-1)
    assert (total.sqrt() <= torch.tensor([1.0, 0.2])).all() and (total.sqrt() > torch.tensor([0.999, 0.199])).all()
    assert torch.equal(budget.apply(observation, torch.full((2, 3), torch.nan)), observation)
