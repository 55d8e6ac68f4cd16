"""Bridges to rsl_rl and skrl: what a step returns, what is refused, and that both libraries train with them."""

import importlib
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import TorchVectorEnv, bridges
from robust_policies.envs.wrappers import EpisodeStatistics, NormalizeObservation
from robust_policies.errors import InvalidValueError, ShapeError

COUNT = 16


@pytest.fixture
def walls(own_task):
    """Return a linear task in which some episodes terminate and others run into the time limit."""

    def change(content):
        content["limits"]["state"] = [0.6, 5.0]
        content["reset"]["spread"] = [0.5, 1.0]

    return own_task("linear", change)


def rsl_rl(*args, **options):
    pytest.importorskip("rsl_rl", reason="rsl_rl is not installed")
    return bridges.RslRlVecEnv(*args, **options)


def skrl(*args, **options):
    pytest.importorskip("skrl", reason="skrl is not installed")
    return bridges.SkrlWrapper(*args, **options)


def pendulum(**options):
    return gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=COUNT, **options)


def test_rsl_rl_sees_the_same_steps(walls):
    plain = TorchVectorEnv(walls, COUNT, max_episode_steps=12)
    env = rsl_rl(TorchVectorEnv(walls, COUNT, max_episode_steps=12), seed=4)
    observation, _ = plain.reset(seed=4)
    assert (env.num_envs, env.num_actions, env.max_episode_length) == (COUNT, 1, 12)
    assert env.device == torch.device("cpu") and env.cfg["plant"] == "linear"
    assert torch.equal(env.get_observations()["policy"], observation)
    both = torch.zeros(2, dtype=torch.int64)
    for k in range(40):
        actions = torch.full((COUNT, 1), 2.0 * (-1) ** (k // 9))
        groups, rewards, dones, extras = env.step(actions)
        observation, reward, terminated, truncated, info = plain.step(actions)
        assert groups.batch_size == (COUNT,) and torch.equal(groups["policy"], observation)
        assert env.get_observations() is groups
        assert torch.equal(rewards, reward) and torch.equal(dones, terminated | truncated)
        assert torch.equal(extras["time_outs"], truncated & ~terminated)
        assert ("final_obs" in extras) == bool(dones.any())
        if "final_obs" in extras:
            assert torch.equal(extras["final_obs"], info["final_obs"]) and torch.equal(extras["_final_obs"], dones)
        assert torch.equal(env.episode_length_buf, plain.elapsed)
        both += torch.stack((terminated.sum(), extras["time_outs"].sum()))
    assert (both > 0).all()


def test_a_limit_reached_while_terminating_is_no_time_out(own_task):
    def change(content):
        content["limits"]["state"] = [1e-6, 1e-6]
        content["max_episode_steps"] = 1

    task = own_task("linear", change)
    *_, terminated, truncated, info = skrl_step(TorchVectorEnv(task, COUNT))
    assert terminated.all() and truncated.all() and info["_final_obs"].all()
    *_, dones, extras = rsl_rl(TorchVectorEnv(task, COUNT), seed=0).step(torch.zeros(COUNT, 1))
    assert dones.all() and not extras["time_outs"].any()


def skrl_step(env):
    wrapped = skrl(env, seed=0)
    wrapped.reset()
    return wrapped.step(torch.zeros(COUNT, 1))


def test_rsl_rl_may_spread_the_episodes_ends():
    env = rsl_rl(pendulum(), seed=0)
    ages = torch.arange(COUNT) * 12
    env.episode_length_buf = ages
    assert torch.equal(env.episode_length_buf, ages)
    ends = {}
    for k in range(200):
        dones = env.step(torch.zeros(COUNT, 1))[2]
        ends |= {int(i): k + 1 for i in dones.nonzero() if int(i) not in ends}
    assert ends == {i: 200 - 12 * i for i in range(COUNT)}
    with pytest.raises(ShapeError, match=r"elapsed has shape \(3,\)"):
        env.episode_length_buf = torch.zeros(3)


def test_rsl_rl_logs_the_statistics_of_ended_episodes_only():
    env = rsl_rl(EpisodeStatistics(pendulum(max_episode_steps=10)), seed=0)
    env.episode_length_buf = torch.tensor([4] * 3 + [0] * (COUNT - 3))
    rewards = torch.zeros(COUNT)
    for k in range(6):
        _, reward, dones, extras = env.step(torch.zeros(COUNT, 1))
        assert ("log" in extras) == (k == 5)
        rewards += reward
    assert dones.sum() == 3
    assert float(extras["log"]["/episode/length"]) == 6.0
    torch.testing.assert_close(extras["log"]["/episode/return"].float(), rewards[:3].mean())


def test_privileged_states_are_those_after_the_step():
    env = rsl_rl(pendulum(max_episode_steps=2), states=True, seed=0)
    wrapped = skrl(pendulum(max_episode_steps=2), states=True, seed=0)
    wrapped.reset()
    assert wrapped.state_space == gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    for _ in range(3):
        groups, *_ = env.step(torch.zeros(COUNT, 1))
        wrapped.step(torch.zeros(COUNT, 1))
        assert groups["state"].dtype == torch.float32 and groups["state"].shape == (COUNT, 2)
        torch.testing.assert_close(groups["state"][:, 0].cos(), groups["policy"][:, 0])
        assert torch.equal(wrapped.state(), groups["state"])


@pytest.mark.parametrize("bridge", [rsl_rl, skrl])
def test_float64_environments_give_float32(bridge):
    env = bridge(pendulum(dtype="float64"), seed=0)
    if bridge is skrl:
        assert env.reset()[0].dtype == torch.float32
        assert [value.dtype for value in env.step(torch.zeros(COUNT, 1))[:2]] == [torch.float32] * 2
    else:
        groups, rewards, *_ = env.step(torch.zeros(COUNT, 1))
        assert groups["policy"].dtype == rewards.dtype == torch.float32


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_skrl_sees_the_same_steps(walls, mode):
    options = {"autoreset_mode": mode, "max_episode_steps": 12}
    plain, env = TorchVectorEnv(walls, COUNT, **options), skrl(TorchVectorEnv(walls, COUNT, **options), seed=4)
    assert torch.equal(env.reset()[0], plain.reset(seed=4)[0])
    assert env.observation_space == plain.single_observation_space and env.action_space == plain.single_action_space
    assert (env.num_envs, env.num_agents, env.device) == (COUNT, 1, torch.device("cpu"))
    assert env.state() is None and env.state_space is None and env.render() is None
    for k in range(40):
        actions = torch.full((COUNT, 1), 2.0 * (-1) ** (k // 9))
        observation, rewards, terminated, truncated, infos = env.step(actions)
        expected = plain.step(actions)
        assert torch.equal(observation, expected[0])
        for value, wanted in zip((rewards, terminated, truncated), expected[1:4], strict=True):
            assert value.shape == (COUNT, 1) and torch.equal(value.squeeze(-1), wanted)
        assert infos.keys() == expected[4].keys()
    assert torch.equal(env.reset()[0], plain.reset()[0])
    env.close()


def test_skrl_sees_the_spaces_of_the_outermost_wrapper():
    env = skrl(NormalizeObservation(pendulum(), clip=3.0))
    assert env.observation_space == gymnasium.spaces.Box(-3.0, 3.0, (3,), np.float32)


@pytest.mark.parametrize(
    ("bridge", "mode", "message"),
    [(rsl_rl, "NEXT_STEP", "NEXT_STEP; expected SAME_STEP"), (rsl_rl, "DISABLED", "DISABLED; expected SAME_STEP"),
     (skrl, "DISABLED", "DISABLED; expected SAME_STEP or NEXT_STEP")],
)  # fmt: skip
def test_other_autoreset_modes_are_refused(bridge, mode, message):
    with pytest.raises(InvalidValueError, match=message):
        bridge(pendulum(autoreset_mode=mode))


@pytest.mark.parametrize("bridge", [rsl_rl, skrl])
def test_only_vectorized_torch_environments_are_bridged(bridge):
    with pytest.raises(InvalidValueError, match="expected a TorchVectorEnv"):
        bridge(gymnasium.make("robust_policies/Pendulum-v0"))


def test_rsl_rl_refuses_choices():
    with pytest.raises(InvalidValueError, match=r"Discrete\(2\); expected a Box, rsl_rl's actions are continuous"):
        rsl_rl(TorchVectorEnv("cartpole", COUNT))


def test_skrl_gives_choices_as_a_column():
    plain, env = TorchVectorEnv("cartpole", COUNT), skrl(TorchVectorEnv("cartpole", COUNT), seed=2)
    env.reset()
    plain.reset(seed=2)
    choices = torch.arange(COUNT) % 2
    assert env.action_space == gymnasium.spaces.Discrete(2)
    assert torch.equal(env.step(choices.unsqueeze(-1))[0], plain.step(choices)[0])


@pytest.mark.parametrize(
    ("library", "name", "command"),
    [("rsl_rl", "RslRlVecEnv", "pip install rsl-rl-lib"), ("skrl", "SkrlWrapper", "pip install skrl")],
)
def test_a_missing_library_is_named_with_its_installation(monkeypatch, library, name, command):
    monkeypatch.setitem(sys.modules, library, None)
    for module in [module for module in sys.modules if module.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"robust_policies.envs.bridges.{library}", raising=False)
    # A lazy name that another test has used is kept by its face.
    monkeypatch.delitem(vars(bridges), name, raising=False)
    with pytest.raises(InvalidValueError, match=command):
        getattr(bridges, name)


def test_importing_the_bridges_imports_no_library():
    code = "import sys, robust_policies.envs.bridges; print([n for n in ('rsl_rl', 'skrl') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_rsl_rl_trains(tmp_path):
    env = rsl_rl(EpisodeStatistics(pendulum(max_episode_steps=20)), states=True, seed=0)
    runners = importlib.import_module("rsl_rl.runners")
    torch.manual_seed(0)
    network = {"class_name": "MLPModel", "hidden_dims": [16, 16], "activation": "tanh"}
    runner = runners.OnPolicyRunner(
        env,
        {
            "num_steps_per_env": 24,
            "save_interval": 1,
            "obs_groups": {"actor": ["policy"], "critic": ["policy", "state"]},
            "actor": {**network, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}},
            "critic": dict(network),
            "algorithm": {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 2},
        },
        log_dir=str(tmp_path),
        device="cpu",
    )
    runner.logger.git_status_repos = []
    before = {name: value.clone() for name, value in runner.alg.get_policy().state_dict().items()}
    losses = []
    update = runner.alg.update

    def recorded():
        losses.append(update())
        return losses[-1]

    runner.alg.update = recorded
    runner.learn(2, init_at_random_ep_len=True)
    assert len(losses) == 2 and all(np.isfinite(value) for loss in losses for value in loss.values())
    after = runner.alg.get_policy().state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert env.env.episode_count > 0 and list(tmp_path.glob("model_*.pt")) and list(tmp_path.glob("events*"))
    policy = runner.get_inference_policy()
    assert policy(env.get_observations()).shape == (COUNT, 1)


def test_skrl_trains(tmp_path):
    env = skrl(EpisodeStatistics(pendulum(max_episode_steps=20)), seed=0)
    models = importlib.import_module("skrl.models.torch")
    ppo = importlib.import_module("skrl.agents.torch.ppo")
    memories = importlib.import_module("skrl.memories.torch")
    trainers = importlib.import_module("skrl.trainers.torch")

    class Policy(models.GaussianMixin, models.Model):
        def __init__(self):
            models.Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space)
            models.GaussianMixin.__init__(self)
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
            self.log_std = torch.nn.Parameter(torch.zeros(1))

        def compute(self, inputs, role=""):
            return self.layers(inputs["observations"]), {"log_std": self.log_std}

    class Value(models.DeterministicMixin, models.Model):
        def __init__(self):
            models.Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space)
            models.DeterministicMixin.__init__(self)
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

        def compute(self, inputs, role=""):
            return self.layers(inputs["observations"]), {}

    torch.manual_seed(0)
    nets = {"policy": Policy(), "value": Value()}
    agent = ppo.PPO(
        models=nets,
        memory=memories.RandomMemory(memory_size=24, num_envs=env.num_envs, device=env.device),
        observation_space=env.observation_space,
        state_space=env.state_space,
        action_space=env.action_space,
        device=env.device,
        cfg={"rollouts": 24, "learning_epochs": 2, "mini_batches": 2, "time_limit_bootstrap": True,
             "experiment": {"directory": str(tmp_path), "write_interval": 0, "checkpoint_interval": 0}},
    )  # fmt: skip
    before = {name: value.clone() for name, value in nets["policy"].state_dict().items()}
    trainer = trainers.SequentialTrainer(
        env=env,
        agents=agent,
        cfg={"timesteps": 48, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False},
    )
    trainer.train()
    after = nets["policy"].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for net in nets.values() for value in net.state_dict().values())
    losses = [value for name, values in agent.tracking_data.items() if name.startswith("Loss") for value in values]
    assert losses and np.isfinite(losses).all()
    assert env._env.episode_count == 2 * COUNT
