"""Cells as recurrent models of skrl: what they give in rollouts and updates, and the policy that is saved of them."""

import importlib

import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import SMALL, randomize

from robust_policies.certificates import verify
from robust_policies.certificates.signals import BEFORE_NORMALISATION, RAW
from robust_policies.envs import TorchVectorEnv
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.policies import certify_model, deploy, load_policy, save_policy

pytest.importorskip("skrl", reason="skrl is not installed")
SkrlWrapper = importlib.import_module("robust_policies.envs.bridges").SkrlWrapper
bridges = importlib.import_module("robust_policies.policies.bridges")
PPO_RNN = importlib.import_module("skrl.agents.torch.ppo").PPO_RNN
memories = importlib.import_module("skrl.memories.torch")
Scaler = importlib.import_module("skrl.resources.preprocessors.torch").RunningStandardScaler
trainers = importlib.import_module("skrl.trainers.torch")

COUNT, LENGTH, ROLLOUT = 4, 6, 12
QUIET = {"write_interval": 0, "checkpoint_interval": 0}


def pendulum(episode=9, states=False):
    return SkrlWrapper(TorchVectorEnv("pendulum", COUNT, max_episode_steps=episode), states=states, seed=0)


def made(env, kind=None, cell="r2dn", seed=0, **options):
    kind = kind or bridges.SkrlCellPolicy
    torch.manual_seed(seed)
    options = {"cell_kwargs": SMALL[cell], "state_space": env.state_space, **options}
    return randomize(kind(env.observation_space, env.action_space, COUNT, LENGTH, cell=cell, **options), 0.3)


def agent_of(env, kind=None, policy=None, value=None, **cfg):
    models = {"policy": policy or made(env), "value": value or made(env, bridges.SkrlCellValue, "gru", seed=1)}
    settings = {"rollouts": ROLLOUT, "learning_epochs": 2, "mini_batches": 2, "experiment": QUIET, **cfg}
    return (kind or bridges.SkrlPPO)(
        models=models,
        memory=memories.RandomMemory(memory_size=ROLLOUT, num_envs=COUNT),
        observation_space=env.observation_space,
        state_space=env.state_space,
        action_space=env.action_space,
        cfg=settings,
    )


def rollout(agent, env, steps=ROLLOUT):
    """Let an agent record steps as skrl's trainers do, without an update."""
    agent.init()
    agent.enable_training_mode(True)
    observations, _ = env.reset()
    states = env.state()
    with torch.no_grad():
        for t in range(steps):
            actions, _ = agent.act(observations, states, timestep=t, timesteps=steps)
            following, rewards, terminated, truncated, infos = env.step(actions)
            agent.record_transition(
                observations=observations, states=states, actions=actions, rewards=rewards,
                next_observations=following, next_states=env.state(), terminated=terminated, truncated=truncated,
                infos=infos, timestep=t, timesteps=steps,
            )  # fmt: skip
            observations, states = following, env.state()


def train(agent, env, steps):
    options = {"timesteps": steps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    trainers.SequentialTrainer(env=env, agents=agent, cfg=options).train()


def sampled(agent, batches=2):
    """Return minibatches as the agent's update has them: observations, states of the cells, ends, and what was done."""
    names = ["observations", "terminated", "truncated", "log_prob", "values", "actions"]
    names += [name for name in ("rnn_policy_0", "rnn_value_0") if name in agent.memory.tensors]
    found = agent.memory.sample_all(names=names, mini_batches=batches, sequence_length=LENGTH)
    return [dict(zip(names, batch, strict=True)) for batch in found]


@pytest.mark.parametrize("cell", ["r2dn", "ren", "lstm", "gru"])
def test_sequences_give_what_stepping_gives_and_its_gradients(cell):
    policy = made(pendulum(), cell=cell)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROLLOUT, COUNT, 3, generator=generator)
    ends = torch.rand(2, ROLLOUT, COUNT, 1, generator=generator) < 0.15
    weights = torch.randn(ROLLOUT, COUNT, 1, generator=generator)
    policy.enable_training_mode(False)
    state, rows, kept = torch.zeros(1, COUNT, policy.cell.state_size), [], []
    for t in range(ROLLOUT):
        if t % LENGTH == 0:
            state = state.detach()
        kept.append(state.detach())
        mean, outputs = policy.compute({"observations": inputs[t], "rnn": [state]})
        rows.append(mean)
        state = outputs["rnn"][0].masked_fill(ends[:, t].any(0), 0.0)
    stepped = torch.stack(rows)
    (stepped * weights).sum().backward()
    expected = {name: value.grad.clone() for name, value in policy.named_parameters() if value.grad is not None}

    def flat(values):
        return values.swapaxes(0, 1).flatten(0, 1)

    policy.zero_grad()
    policy.enable_training_mode(True)
    mean, _ = policy.compute(
        {
            "observations": flat(inputs),
            "rnn": [flat(torch.stack(kept).squeeze(1)).unsqueeze(0)],
            "terminated": flat(ends[0]),
            "truncated": flat(ends[1]),
        }
    )
    torch.testing.assert_close(mean, flat(stepped), rtol=1e-5, atol=1e-5)
    (mean * flat(weights)).sum().backward()
    for name, value in expected.items():
        torch.testing.assert_close(dict(policy.named_parameters())[name].grad, value, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("cell", ["r2dn", "mlp"])
def test_an_update_begins_with_the_probabilities_and_values_of_the_rollout(cell):
    env = pendulum()
    agent = agent_of(env, policy=made(env, cell=cell))
    rollout(agent, env)
    agent.enable_models_training_mode(True)
    assert agent.memory.tensors["truncated"].any()
    for batch in sampled(agent):
        given = {key: batch[key] for key in ("observations", "terminated", "truncated")}
        states = {key: [batch[key].transpose(0, 1)] for key in ("rnn_policy_0", "rnn_value_0") if key in batch}
        acted = {**given, "rnn": states.get("rnn_policy_0", []), "taken_actions": batch["actions"]}
        _, outputs = agent.policy.act(acted, role="policy")
        torch.testing.assert_close(outputs["log_prob"], batch["log_prob"], rtol=1e-4, atol=1e-4)
        values, _ = agent.value.act({**given, "rnn": states["rnn_value_0"]}, role="value")
        torch.testing.assert_close(values, batch["values"], rtol=1e-4, atol=1e-4)


def test_skrls_own_agent_trains_it_too():
    env = pendulum()
    agent = agent_of(env, PPO_RNN)
    train(agent, env, 2 * ROLLOUT)
    assert all(bool(torch.isfinite(value).all()) for value in agent.policy.state_dict().values())


@pytest.mark.parametrize("limits", [False, True])
def test_an_advantage_ends_at_a_time_limit_whose_value_it_has(limits):
    env = pendulum()
    agent = agent_of(env, time_limit_bootstrap=limits)
    rollout(agent, env)
    stored = agent.memory.tensors
    assert stored["truncated"].any()
    assert torch.equal(stored["terminated"], stored["truncated"] if limits else torch.zeros_like(stored["truncated"]))


def test_the_agent_trains_it_and_its_policy_is_an_ordinary_folder(tmp_path):
    env = pendulum(states=True)
    policy = made(env, action_scale=2.0, observation_scale=[1.0, 1.0, 2.0], cell_output_size=3, log_std=-1.0)
    value = made(env, bridges.SkrlCellValue, "r2dn", seed=1, reads="states")
    assert value.cell.input_size == 2
    scaled = {"observation_preprocessor": Scaler, "observation_preprocessor_kwargs": {"size": env.observation_space}}
    agent = agent_of(env, policy=policy, value=value, **scaled)
    before = [parameter.clone() for parameter in (*policy.parameters(), *value.parameters())]
    train(agent, env, 2 * ROLLOUT)
    after = [*policy.parameters(), *value.parameters()]
    assert sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)) > len(before) / 2

    save_policy(deploy(agent, env), tmp_path, task="robust_policies/Pendulum-v0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    deployed = load_policy(tmp_path)
    assert deployed.observation_space == env.observation_space and deployed.action_space == env.action_space
    torch.testing.assert_close(deployed.log_std, policy.log_std.detach())
    scaler = agent.checkpoint_modules["observation_preprocessor"]
    policy.enable_training_mode(False)
    rng, state, carried = np.random.default_rng(0), None, torch.zeros(1, COUNT, policy.cell.state_size)
    with torch.no_grad():
        for _ in range(10):
            # Some observations are clipped by the scaler.
            observation = (rng.normal(size=(COUNT, 3)) * [1.0, 1.0, 30.0]).astype(np.float32)
            action, state = deployed.predict(observation, state)
            mean, outputs = policy.compute({"observations": scaler(torch.from_numpy(observation)), "rnn": [carried]})
            carried = outputs["rnn"][0]
            np.testing.assert_allclose(action, mean.clamp(-2.0, 2.0).numpy(), rtol=1e-4, atol=1e-5)

    certificate = deployed.certificate()
    assert certificate.status == "PASS" and certificate.signals.reads == RAW
    assert "observation normalization" in [factor.name for factor in certificate.factors]
    assert certify_model(agent).signals.reads == BEFORE_NORMALISATION
    assert not deploy(agent).raw and not deploy(policy, env).actor.normalizer


@pytest.mark.parametrize("seed", range(2))
def test_the_guarantee_holds_whatever_the_parameters(seed, tmp_path):
    save_policy(randomize(made(pendulum(), seed=seed), 3.0, seed), tmp_path)
    found = verify(load_policy(tmp_path).cell)
    assert found.status == "PASS" and found.gamma <= 5.0 * (1 + 1e-6)


def test_a_one_sided_box_gives_the_action_its_range():
    box = spaces.Box(-np.inf, np.inf, (2,))
    policy = bridges.SkrlCellPolicy(box, spaces.Box(0.0, 5.0, (1,)), 1, cell="gru", cell_kwargs={"state_size": 2})
    assert policy.head.scale.tolist() == policy.head.offset.tolist() == [2.5]
    assert bridges.SkrlCellValue(box, spaces.Box(0.0, 5.0, (1,)), 1, cell_kwargs=SMALL["r2dn"]).head.scale is None


def test_what_is_wrong_is_said():
    env = pendulum()
    with pytest.raises(UnknownNameError, match="cell_kwargs"):
        made(env, cell_kwarg={})
    with pytest.raises(UnknownNameError, match="observations"):
        made(env, bridges.SkrlCellValue, reads="observation")
    with pytest.raises(InvalidValueError, match="state_space is None; expected a Box"):
        made(env, bridges.SkrlCellValue, reads="states")
    with pytest.raises(InvalidValueError, match=r"action_space is Discrete\(2\); expected a Box"):
        bridges.SkrlCellPolicy(env.observation_space, spaces.Discrete(2), 1, cell_kwargs=SMALL["r2dn"])
    with pytest.raises(InvalidValueError, match="critic"):
        deploy(made(env, bridges.SkrlCellValue))
    policy = made(env)
    steps = torch.zeros(8, 3)
    with pytest.raises(InvalidValueError, match="8 steps, no multiple of sequence_length 6"):
        policy.compute({"observations": steps, "rnn": [torch.zeros(1, 8, 4)]})
    agent = agent_of(env, policy=policy)
    agent.checkpoint_modules["observation_preprocessor"] = torch.nn.Identity()
    with pytest.raises(InvalidValueError, match="Identity; expected skrl's RunningStandardScaler"):
        deploy(agent)
