"""Random actions, half beyond the limits, in every environment: finite, in bounds, within limits.

A few whole episodes in the suite, a million steps in the soak.
"""

import gymnasium
import pytest
import torch
from env_cases import ENDLESS_IDS, every_id, every_kind, ours

ROUNDING = 1e-9


def held_limits(plant, state):
    """Return, by name, where (n,) states keep what the equations hold at all times, besides the termination."""
    limits = getattr(plant.task, "limits", None)
    if plant.kind == "pendulum":
        return {"speed": state[:, 1].abs() <= limits.speed}
    if plant.kind == "maglev":
        return {"position": (state[:, 0] >= 0.0) & (state[:, 0] <= limits.position)}
    if plant.kind == "quadrotor":
        return {
            "norm of the quaternion": (state[:, 3:7].norm(dim=-1) - 1.0).abs() <= ROUNDING,
            "body rate": (state[:, 10:13].abs() <= limits.body_rate).all(-1),
        }
    return {}


def random_actions(env, generator):
    space = env.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.randint(int(space.n), (env.num_envs,), generator=generator)
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    reach = 3.0 * torch.rand((env.num_envs, *space.shape), generator=generator) - 1.5
    return (low + high) / 2 + reach * (high - low) / 2


@pytest.fixture
def threads():
    """Restore the number of torch's threads, which the test changes."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@every_kind
def test_a_few_episodes_of_random_steps_stay_finite_and_within_limits(env_id, threads):
    check_random_steps(env_id, 6_000)


@pytest.mark.soak
@every_id
def test_a_million_random_steps_stay_finite_and_within_limits(env_id, threads):
    check_random_steps(env_id, 1_000_000)


def check_random_steps(env_id, total):
    # Whole episodes to beyond their time limit, in as many environments as make the total.
    limit = ours(env_id, count=1).max_episode_steps
    steps = limit + 1
    env = ours(env_id, count=-(-total // steps))
    # MuJoCo has as many threads as torch had; torch's own only wait for each other in batches this small.
    torch.set_num_threads(1)
    plant, generator = env.plant, torch.Generator().manual_seed(0)
    low, high = (
        torch.as_tensor(bound) for bound in (env.single_observation_space.low, env.single_observation_space.high)
    )
    observation, _ = env.reset(seed=0)
    terminations = truncations = 0
    for step in range(steps):
        assert torch.isfinite(observation).all() and ((observation >= low) & (observation <= high)).all(), step
        observation, reward, terminated, truncated, info = env.step(random_actions(env, generator))
        assert torch.isfinite(reward).all(), step
        if "final_obs" in info:
            final = info["final_obs"][info["_final_obs"]]
            assert torch.isfinite(final).all() and ((final >= low) & (final <= high)).all(), step
        state = env.state
        assert torch.isfinite(state).all(), step
        for name, kept in held_limits(plant, state).items():
            assert kept.all(), (name, step)
        if plant.terminates:
            assert not plant.terminated(state, env.prepared).any(), step
        assert (env.elapsed < limit).all(), step
        terminations, truncations = terminations + int(terminated.sum()), truncations + int(truncated.sum())
    assert env.num_envs * steps >= total
    assert (terminations > 0) == (plant.terminates and env_id not in ENDLESS_IDS)
    if not terminations:
        assert truncations == env.num_envs
