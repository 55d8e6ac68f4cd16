"""Recurrent PPO on the device: the same rollouts, advantages and first update as sb3-contrib's, within rounding."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_recipe import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.envs.wrappers import RescaleAction
from robust_policies.errors import DivergedError, InvalidValueError
from robust_policies.policies import RecurrentCellPolicy, load_policy, save_policy
from robust_policies.train import TensorRecurrentPPO, load_recipe, train
from robust_policies.train.ppo.minibatches import merge_remainders

ENVS, STEPS, LIMIT = 6, 20, 7
CELLS = {
    "r2dn": {"state_size": 4, "features": 5, "hidden_sizes": (6, 6), "gamma": 5.0},
    "ren": {"state_size": 4, "features": 5, "gamma": 5.0},
    "lstm": {"state_size": 8},
    "gru": {"state_size": 5},
    "mlp": {"hidden_sizes": (8,)},
    "lbdn": {"hidden_sizes": (8,), "gamma": 5.0},
}


def make_env(task="pendulum", num_envs=ENVS, limit=LIMIT, seed=3):
    env = SB3VecEnv(TorchVectorEnv(task, num_envs, max_episode_steps=limit))
    env.seed(seed)
    return env


def make_model(env, cell="r2dn", critic="mlp", kind=TensorRecurrentPPO, **options):
    kwargs = {"cell": cell, "cell_kwargs": CELLS[cell], "critic": critic, "zero_init": False}
    kwargs |= options.pop("policy_kwargs", {})
    settings = {"n_steps": STEPS, "batch_size": None, "n_epochs": 1, "gamma": 0.95, "learning_rate": 1e-3, "seed": 0}
    return kind(RecurrentCellPolicy, env, policy_kwargs=kwargs, device="cpu", **(settings | options))


def scattered(env):
    """Spread the ends of the episodes, as they are after many of random length."""
    env.inner.elapsed = torch.arange(env.num_envs) % LIMIT


class Scatter(BaseCallback):
    """Spreads the ends of the episodes before the first step, and keeps a copy of every rollout."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_rollout_start(self):
        if not self.rollouts:
            scattered(self.training_env)

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.rollouts.append(copy.deepcopy(self.model.rollout_buffer))


def upstream_rollout(model, actions):
    """Return the buffer of an sb3-contrib model after its own loop, in NumPy, with given actions (time, env, ...)."""
    env = model.env
    policy, given = model.policy, iter(actions)
    forward = policy.forward

    def with_given_actions(obs, lstm_states, episode_starts, deterministic=False):
        _, values, _, following = forward(obs, lstm_states, episode_starts, deterministic)
        chosen = next(given)
        _, log_prob, _ = policy.evaluate_actions(obs, chosen, lstm_states, episode_starts)
        return chosen, values, log_prob, following

    policy.forward = with_given_actions
    try:
        model._setup_learn(1, None)
        scattered(env)
        callback = CallbackList([])
        callback.init_callback(model)
        assert model.collect_rollouts(env, callback, model.rollout_buffer, len(actions))
    finally:
        policy.forward = forward
    return model.rollout_buffer


def pair(task, cell, critic, **options):
    """Return our model after one rollout (not updated), its rollout, and an sb3-contrib model with the same weights."""
    ours = make_model(make_env(task), cell, critic, **options)
    keep = Scatter()
    _, callback = ours._setup_learn(1, keep)
    assert ours.collect_rollouts(ours.env, callback, ours.rollout_buffer, STEPS)
    theirs = make_model(make_env(task), cell, critic, RecurrentPPO, **options)
    theirs.policy.load_state_dict(ours.policy.state_dict())
    buffer = upstream_rollout(theirs, ours.rollout_buffer.actions)
    return ours, theirs, buffer


COMBINATIONS = [("r2dn", critic) for critic in ("own", "shared", "mlp")] + [
    ("ren", "own"),
    ("lstm", "own"),
    ("lstm", "shared"),
    ("mlp", "mlp"),
    ("lbdn", "shared"),
]


@pytest.mark.parametrize(("cell", "critic"), COMBINATIONS)
def test_a_rollout_is_sb3_contribs_with_the_same_actions(cell, critic):
    ours, _, theirs = pair("pendulum", cell, critic)
    mine = ours.rollout_buffer
    assert mine.dones.any(0).all()
    assert len(set(mine.dones.int().argmax(0).tolist())) > 1
    for name in ("observations", "values", "log_probs", "advantages", "returns"):
        expected = getattr(theirs, name)
        actual = getattr(mine, name).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * max(1, abs(expected).max()), err_msg=name)
    assert np.array_equal(mine.starts.numpy(), theirs.episode_starts.astype(bool))


def test_a_rollout_of_a_task_that_ends_early_is_sb3_contribs():
    ours, _, theirs = pair("cartpole", "r2dn", "own")
    mine = ours.rollout_buffer
    for name in ("observations", "values", "log_probs", "advantages", "returns"):
        expected = getattr(theirs, name)
        actual = getattr(mine, name).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * max(1, abs(expected).max()), err_msg=name)


@pytest.mark.parametrize(("cell", "critic"), COMBINATIONS)
@pytest.mark.parametrize("options", [{}, {"clip_range_vf": 0.1, "ent_coef": 0.01, "normalize_advantage": False}])
def test_the_first_update_is_sb3_contribs(cell, critic, options):
    ours, theirs, _ = pair("pendulum", cell, critic, **options)
    # Its buffer cuts one environment's sequence in two at a random place; this draw cuts between two environments.
    np.random.seed(next(s for s in range(10_000) if np.random.RandomState(s).randint(STEPS * ENVS) % STEPS == 0))
    before = copy.deepcopy(ours.policy.state_dict())
    ours.train()
    theirs.train()
    expected = theirs.policy.state_dict()
    moved = 0.0
    for name, value in ours.policy.state_dict().items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        moved = max(moved, float((value - before[name]).abs().max())) if value.numel() else moved
    assert moved > 5e-4
    ours_logged, theirs_logged = ours.logger.name_to_value, theirs.logger.name_to_value
    for tag in [tag for tag in theirs_logged if tag.startswith("train/")]:
        assert ours_logged[tag] == pytest.approx(theirs_logged[tag], rel=1e-4, abs=1e-5), tag


def test_the_episodes_are_those_that_sb3s_bridge_reports():
    ours = make_model(make_env(), stats_window_size=1000)
    keep = Scatter()
    ours.learn(3 * STEPS * ENVS, keep)
    env = make_env()
    env.seed(0)
    env.reset()
    scattered(env)
    episodes = []
    for rollout in keep.rollouts:
        for actions in rollout.actions:
            infos = env.step(actions.numpy().clip(-2, 2))[3]
            episodes += [info["episode"] for info in infos if "episode" in info]
    assert [e["l"] for e in ours.ep_info_buffer] == [e["l"] for e in episodes]
    np.testing.assert_allclose([e["r"] for e in ours.ep_info_buffer], [e["r"] for e in episodes], rtol=1e-5)


def test_rewards_are_scaled_by_the_deviation_that_vecnormalize_finds():
    ours = make_model(make_env(), normalize_reward=True)
    keep = Scatter()
    ours.learn(2 * STEPS * ENVS, keep)
    env = VecNormalize(make_env(), norm_obs=False, gamma=0.95)
    env.seed(0)
    env.reset()
    scattered(env)
    for rollout in keep.rollouts:
        for actions in rollout.actions:
            env.step(actions.numpy().clip(-2, 2))
    moments = ours.normalization_state()["reward"]
    assert moments["count"] == pytest.approx(env.ret_rms.count)
    assert moments["mean"] == pytest.approx(env.ret_rms.mean, rel=1e-4)
    assert moments["variance"] == pytest.approx(env.ret_rms.var, rel=1e-4)


def test_the_learned_observation_scale_is_a_constant_of_policy_and_certificate(tmp_path):
    ours = make_model(make_env(), normalize_observation=True)
    keep = Scatter()
    ours.learn(3 * STEPS * ENVS, keep)
    seen = torch.cat([rollout.observations.flatten(0, 1) for rollout in keep.rollouts])
    scaling = ours.policy.lstm_actor.scaling
    torch.testing.assert_close(scaling.offset, seen.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaling.scale, seen.std(0, correction=0), rtol=1e-3, atol=1e-4)
    certificate = ours.policy.certificate(ours.env)
    factors = {factor.name: factor.gain for factor in certificate.factors}
    product = 5.0 / float(scaling.scale.min())
    assert factors["observation scale"] == pytest.approx(product / 5.0, rel=1e-6)
    assert 0.1 * product < certificate.gamma_raw <= product * (1 + 1e-9)
    observation = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected, _ = ours.predict(observation, deterministic=True)
    save_policy(ours, tmp_path / "policy")
    np.testing.assert_allclose(load_policy(tmp_path / "policy").predict(observation)[0], expected, atol=1e-6)
    ours.save(tmp_path / "model.zip")
    np.testing.assert_array_equal(RecurrentPPO.load(tmp_path / "model.zip").predict(observation, deterministic=True)[0],
                                  expected)  # fmt: skip


def test_a_saved_model_goes_on_as_the_one_that_was_not_saved(tmp_path):
    options = {"normalize_observation": True, "normalize_reward": True}
    first = make_model(make_env(), critic="own", **options)
    first.learn(2 * STEPS * ENVS)
    first.save(tmp_path / "model.zip")
    second = TensorRecurrentPPO.load(tmp_path / "model.zip", env=make_env(), device="cpu")
    assert second.why_numpy is None
    assert second.normalization_state() == first.normalization_state()
    models = (first, second)
    for model in models:
        torch.manual_seed(7)
        model.set_env(make_env(seed=11))
        model.learn(STEPS * ENVS, reset_num_timesteps=False)
    assert first.num_timesteps == second.num_timesteps == 3 * STEPS * ENVS
    for name, value in first.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name


def test_sb3s_evaluation_callbacks_and_predict_work(tmp_path):
    ours = make_model(make_env())
    assert isinstance(ours, RecurrentPPO)
    evaluations = EvalCallback(
        make_env(num_envs=2), n_eval_episodes=3, eval_freq=STEPS, log_path=str(tmp_path), verbose=0
    )
    ours.learn(2 * STEPS * ENVS, evaluations)
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (2, 3)
    actions, states = ours.predict(ours.env.reset(), deterministic=True)
    assert isinstance(actions, np.ndarray) and isinstance(states[0], np.ndarray)
    returns, lengths = evaluate_policy(ours, ours.env, 4, return_episode_rewards=True)
    assert lengths == [LIMIT] * 4 and np.isfinite(returns).all()
    ours.learn(10 * STEPS * ENVS, StopTrainingOnMaxEpisodes(1))
    assert ours.num_timesteps == LIMIT * ENVS
    ours.learn(STEPS * ENVS, reset_num_timesteps=False)
    assert ours.rollout_buffer.starts[0].all()


def test_rollouts_that_follow_each_other_carry_states_and_episodes_on():
    ours = make_model(make_env(limit=1000), critic="own", n_steps=8)
    keep = Scatter()
    ours.learn(3 * 8 * ENVS, keep)
    first, second, third = keep.rollouts
    assert first.starts[0].all() and not second.starts.any() and not third.starts.any()
    assert not first.actor_state.any() and second.actor_state.any() and third.critic_state.any()
    assert not torch.equal(second.observations[0], first.observations[-1])


def test_spread_episodes_end_at_different_times_and_the_cut_ones_are_not_reported():
    ours = make_model(make_env(limit=10, num_envs=60), n_steps=12, spread_episodes=True, stats_window_size=1000)
    keep = Scatter()
    keep.rollouts = [None]
    ours.learn(3 * 12 * 60, keep)
    dones = torch.cat([rollout.dones for rollout in keep.rollouts[1:]])
    first = dones.int().argmax(0)
    assert len(set(first.tolist())) > 3
    assert [info["l"] for info in ours.ep_info_buffer] == [10] * (int(dones.sum()) - 60)


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("critic", ["own", "mlp"])
def test_no_step_of_a_rollout_waits_for_the_device(critic):
    counts = []
    for n_steps in (8, 32):
        ours = make_model(make_env(limit=1000), critic=critic, n_steps=n_steps, normalize_reward=True)
        _, callback = ours._setup_learn(1, None)
        with Waits() as waits:
            assert ours.collect_rollouts(ours.env, callback, ours.rollout_buffer, n_steps)
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert not ours.env.inner.trusts_actions


def test_actions_that_are_not_finite_are_noticed():
    ours = make_model(make_env())
    with torch.no_grad():
        ours.policy.log_std.fill_(float("nan"))
    with pytest.raises(DivergedError, match="Lower"):
        ours.learn(STEPS * ENVS)


def test_wrapped_environments_train_on_the_device():
    env = SB3VecEnv(RescaleAction(TorchVectorEnv("pendulum", ENVS, max_episode_steps=LIMIT)))
    ours = make_model(env)
    ours.learn(STEPS * ENVS)
    assert ours.why_numpy is None
    assert ours.rollout_buffer.rewards.std() > 0


@pytest.mark.parametrize("wrap", [lambda: DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 2),
                                  lambda: VecNormalize(make_env(num_envs=2), norm_obs=False)])  # fmt: skip
def test_numpy_environments_train_by_the_ordinary_path_and_the_message_says_so(wrap):
    with pytest.warns(UserWarning, match=r"NumPy path, because the environment is a .*VecEnv.*, not a bare SB3VecEnv"):
        ours = make_model(wrap(), batch_size=STEPS)
    assert ours.why_numpy
    ours.learn(2 * STEPS)
    assert ours.num_timesteps == 2 * STEPS
    with pytest.raises(InvalidValueError, match="normalize_reward=True works on the device only, but the environment"):
        make_model(wrap(), normalize_reward=True)


@pytest.mark.parametrize("batch_size", [STEPS - 1, 4 * STEPS, 2 * STEPS + 1, 7 * STEPS])
def test_a_batch_that_is_no_share_of_the_environments_is_refused(batch_size):
    with pytest.raises(
        InvalidValueError, match=r"num_envs is 6 and batch_size .* times a divisor of num_envs, such as"
    ):
        make_model(make_env(), batch_size=batch_size)


def test_two_observation_scales_are_refused():
    with pytest.raises(InvalidValueError, match="leave one of them out"):
        make_model(make_env(), normalize_observation=True, policy_kwargs={"observation_scale": 2.0})


def test_minibatches_are_disjoint_shares_of_whole_environments():
    ours = make_model(make_env(), batch_size=2 * STEPS)
    buffer = ours.rollout_buffer
    buffer.values.copy_(torch.arange(ENVS).expand(STEPS, ENVS))
    taken = [batch.values for pieces in buffer.minibatches(ours.minibatches) for batch, _ in pieces]
    assert [tuple(values.shape) for values in taken] == [(STEPS, 2)] * 3
    assert sorted(torch.cat([values[0] for values in taken]).tolist()) == list(range(ENVS))


RECIPE = [*TINY, "algorithm.name=tensor_ppo", "algorithm.batch_size=200"]


def test_a_recipe_trains_on_the_device_and_its_numpy_twin_does_not(tmp_path):
    recipe = load_recipe("pendulum_r2dn_gamma6", [*RECIPE, "algorithm.normalize_observation=true"])
    assert train(recipe, tmp_path / "ours").num_timesteps == 1600
    twin = load_recipe("pendulum_r2dn_gamma6", [*RECIPE, "task.id=Pendulum-v1", "algorithm.total_steps=400"])
    with pytest.warns(UserWarning, match="NumPy path, because the environment is a DummyVecEnv in a VecNormalize"):
        assert train(twin, tmp_path / "twin").num_timesteps == 400


@pytest.mark.parametrize("option", ["normalize_observation", "spread_episodes"])
def test_what_only_this_algorithm_does_is_refused_for_another(option):
    with pytest.raises(InvalidValueError, match=f"algorithm.{option} is true .* expected name tensor_ppo"):
        load_recipe("pendulum_r2dn_gamma6", [*TINY, f"algorithm.{option}=true"])


def learnt_return(kind, seed):
    """Return the mean return after steps that take it from about -1200 to about -500, with as much between seeds."""
    env, options = make_env(num_envs=32, limit=200, seed=seed), {"normalize_reward": True}
    if kind is RecurrentPPO:
        env, options = VecNormalize(env, norm_obs=False, gamma=0.9), {}
    model = make_model(env, "mlp", kind=kind, n_steps=50, batch_size=400, n_epochs=10, gamma=0.9, seed=seed,
                       learning_rate=3e-3, policy_kwargs={"action_scale": 2.0}, **options)  # fmt: skip
    model.learn(48_000)
    return np.mean(evaluate_policy(model, make_env(num_envs=50, limit=200, seed=99), 50, warn=False)[0])


@pytest.mark.slow
def test_it_learns():
    assert learnt_return(TensorRecurrentPPO, seed=0) > -1000


@pytest.mark.soak
def test_over_seeds_it_learns_what_sb3_contribs_learns():
    # Four standard errors of the difference are left to chance.
    final = {kind: [learnt_return(kind, seed) for seed in range(3)] for kind in (TensorRecurrentPPO, RecurrentPPO)}
    ours, theirs = (np.array(returns) for returns in final.values())
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(ours))
    assert abs(ours.mean() - theirs.mean()) <= 4 * error, final
    assert ours.mean() > -1000, final


def test_a_minibatch_of_one_sample_is_no_divergence():
    model = TensorRecurrentPPO(
        RecurrentCellPolicy, SB3VecEnv(TorchVectorEnv("pendulum", 2)), n_steps=1, batch_size=1, n_epochs=1,
        policy_kwargs={"cell": "gru", "cell_kwargs": {"state_size": 4}}, device="cpu",
    )  # fmt: skip
    model.learn(4)
    assert all(bool(torch.isfinite(value).all()) for value in model.policy.parameters())


def test_minibatches_of_one_sample_are_refused_where_sb3_contrib_takes_them():
    env = DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])
    with pytest.raises(InvalidValueError, match="batch_size is 1"):
        TensorRecurrentPPO(
            RecurrentCellPolicy, env, n_steps=2, batch_size=1,
            policy_kwargs={"cell": "gru", "cell_kwargs": {"state_size": 4}},
        )  # fmt: skip


@pytest.mark.parametrize(("n_steps", "batch_size", "sizes"), [(33, 32, [33]), (9, 4, [4, 5]), (10, 4, [4, 4, 2])])
def test_a_remainder_of_one_sample_joins_the_minibatch_before_it(n_steps, batch_size, sizes):
    model = RecurrentPPO(
        RecurrentCellPolicy, DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), n_steps=n_steps,
        batch_size=batch_size, n_epochs=1, seed=0, policy_kwargs={"cell": "gru", "cell_kwargs": {"state_size": 4}},
    )  # fmt: skip
    merge_remainders(model)
    seen = []
    get = model.rollout_buffer.get
    model.rollout_buffer.get = lambda size: (seen.append(int((b.mask > 0).sum())) or b for b in get(size))
    model.learn(n_steps)
    assert seen == sizes
    assert all(bool(torch.isfinite(value).all()) for value in model.policy.parameters())


def test_a_saved_model_acts_in_another_number_of_environments_and_refuses_to_learn_there(tmp_path):
    make_model(make_env(), batch_size=STEPS * ENVS).save(tmp_path / "model.zip")
    env = make_env(num_envs=ENVS + 1)
    model = TensorRecurrentPPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert np.isfinite(evaluate_policy(model, env, ENVS + 1, warn=False)[0])
    with pytest.raises(InvalidValueError, match=f"num_envs is {ENVS + 1} and batch_size"):
        model.learn(1000)
