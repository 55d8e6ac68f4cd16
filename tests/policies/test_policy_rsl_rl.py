"""Cells as models of rsl_rl: what they give in rollouts and in updates, and the policy that is saved of them."""

import copy
import importlib

import gymnasium
import numpy as np
import pytest
import torch
from policy_models import SMALL, randomize

from robust_policies.certificates import verify
from robust_policies.certificates.signals import GIVEN, RAW
from robust_policies.envs import TorchVectorEnv
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError
from robust_policies.evaluation import run_episodes
from robust_policies.policies import certify_model, deploy, load_policy, save_policy
from robust_policies.policies.actor import Actor, FrozenNormalizer
from robust_policies.policies.certify import certify_actor

pytest.importorskip("rsl_rl", reason="rsl_rl is not installed")
tensordict = importlib.import_module("tensordict")
utils = importlib.import_module("rsl_rl.utils")
runners = importlib.import_module("rsl_rl.runners")
bridges = importlib.import_module("robust_policies.envs.bridges")

NAME = "robust_policies.policies.bridges:RslRlCellModel"
RslRlCellModel = utils.resolve_callable(NAME)
GAUSSIAN = {"class_name": "GaussianDistribution", "init_std": 0.5}
COUNT = 6


def groups(values):
    return tensordict.TensorDict({"policy": values}, batch_size=values.shape[:-1])


def model(cell="r2dn", seed=0, **options):
    options = {"distribution_cfg": dict(GAUSSIAN), "cell_kwargs": SMALL[cell], **options}
    torch.manual_seed(seed)
    made = RslRlCellModel(groups(torch.zeros(COUNT, 3)), {"actor": ["policy"]}, "actor", 2, cell=cell, **options)
    return randomize(made, 0.3)


def runner(seed=0, states=False, steps=24, episode=9, critic=None, algorithm=None, **options):
    env = bridges.RslRlVecEnv(TorchVectorEnv("pendulum", COUNT, max_episode_steps=episode), states=states, seed=seed)
    torch.manual_seed(seed)
    actor = {"class_name": NAME, "cell_kwargs": SMALL["r2dn"], "distribution_cfg": dict(GAUSSIAN), **options}
    cfg = {
        "num_steps_per_env": steps,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy", "state"] if states else ["policy"]},
        "actor": actor,
        "critic": critic or {"class_name": NAME, "cell_kwargs": SMALL["gru"], "cell": "gru", "cell_output_size": 4},
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 2, **(algorithm or {})},
    }
    return runners.OnPolicyRunner(env, cfg, log_dir=None, device="cpu")


def rollout(trained, steps):
    """Let the runner's algorithm record `steps` steps, as the runner does."""
    alg, env = trained.alg, trained.env
    alg.train_mode()
    observations = env.get_observations()
    with torch.inference_mode():
        for _ in range(steps):
            observations, rewards, dones, extras = env.step(alg.act(observations))
            alg.process_env_step(observations, rewards, dones, extras)
        alg.compute_returns(observations)


@pytest.mark.parametrize("cell", ["r2dn", "ren", "lstm", "gru"])
def test_padded_trajectories_give_what_stepping_gives_and_its_gradients(cell):
    made = model(cell, obs_normalization=True)
    made.update_normalization(groups(torch.randn(50, 3) * 3 + 1))
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, COUNT, 3, generator=generator)
    dones = torch.rand(12, COUNT, 1, generator=generator) < 0.25
    weights = torch.randn(12, COUNT, 2, generator=generator)

    made.reset()
    rows, states = [], []
    for values, done in zip(inputs, dones, strict=True):
        kept = made.get_hidden_state()
        states.append(torch.zeros(1, COUNT, made.cell.state_size) if kept is None else kept)
        rows.append(made(groups(values)))
        made.reset(done)
    stepped = torch.stack(rows)
    (stepped * weights).sum().backward()
    expected = {name: value.grad.clone() for name, value in made.named_parameters() if value.grad is not None}

    padded, masks = utils.split_and_pad_trajectories(groups(inputs), dones)
    first = torch.ones(12, COUNT, dtype=torch.bool)
    first[1:] = dones[:-1, :, 0]
    begin = torch.stack(states).permute(2, 0, 1, 3)[first.T].transpose(1, 0).detach()
    assert masks.shape == (12, int(first.sum())) and not masks.all()
    made.zero_grad()
    together = made(padded, masks=masks, hidden_state=begin)
    torch.testing.assert_close(together, stepped, rtol=1e-5, atol=1e-5)
    (together * weights).sum().backward()
    for name, value in expected.items():
        torch.testing.assert_close(dict(made.named_parameters())[name].grad, value, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize(("cell", "critic"), [("r2dn", None), ("mlp", None), ("r2dn", {"class_name": "MLPModel"})])
def test_an_update_begins_with_the_probabilities_of_the_rollout(cell, critic):
    trained = runner(cell=cell, cell_kwargs=SMALL[cell], critic=critic)
    randomize(trained.alg.actor, 0.3)
    randomize(trained.alg.critic, 0.3)
    rollout(trained, 24)
    # The second rollout begins in the middle of episodes.
    trained.alg.storage.clear()
    rollout(trained, 24)
    batches = 0
    for batch in trained.alg.storage.recurrent_mini_batch_generator(2, 1):
        states = batch.hidden_states
        trained.alg.actor(batch.observations, masks=batch.masks, hidden_state=states[0], stochastic_output=True)
        found = trained.alg.actor.get_output_log_prob(batch.actions)
        torch.testing.assert_close(found, batch.old_actions_log_prob.squeeze(-1), rtol=1e-4, atol=1e-4)
        values = trained.alg.critic(batch.observations, masks=batch.masks, hidden_state=states[1])
        torch.testing.assert_close(values, batch.values, rtol=1e-4, atol=1e-4)
        batches += 1
    assert batches == 2


def test_states_begin_anew_where_episodes_ended_only():
    made = model()
    made(groups(torch.randn(COUNT, 3)))
    kept = made.get_hidden_state()
    before = kept.clone()
    dones = torch.tensor([1, 0, 1, 0, 0, 0], dtype=torch.uint8)
    made.reset(dones)
    assert torch.equal(kept, before)
    assert torch.equal(made.get_hidden_state()[0, dones == 0], before[0, dones == 0])
    assert not made.get_hidden_state()[0, dones == 1].any() and before[0, dones == 1].any()
    made.reset(dones, hidden_state=torch.ones_like(before))
    assert torch.equal(made.get_hidden_state()[0, dones == 1], torch.ones(2, made.cell.state_size))
    assert made.get_hidden_state().requires_grad
    made.detach_hidden_state(dones)
    assert made.get_hidden_state().requires_grad
    made.detach_hidden_state()
    assert not made.get_hidden_state().requires_grad
    made.reset()
    assert made.get_hidden_state() is None
    made.reset(hidden_state=before)
    assert made.get_hidden_state() is before
    with pytest.raises(ShapeError, match="hidden_state"):
        made(groups(torch.randn(2, 3)))


def test_a_cell_without_a_state_is_no_recurrent_model():
    made = model("lbdn")
    assert not made.is_recurrent and model().is_recurrent
    made(groups(torch.randn(COUNT, 3)))
    assert made.get_hidden_state() is None
    made.reset(torch.ones(COUNT))
    padded = torch.randn(5, 4, 3)
    masks = torch.ones(5, 4, dtype=torch.bool)
    assert made(groups(padded), masks=masks).shape == (5, 4, 2)


def test_the_runner_trains_it_and_its_policy_is_an_ordinary_folder(tmp_path):
    trained = runner(
        states=True, action_scale=2.0, obs_normalization=True, observation_scale=[1.0, 1.0, 2.0], cell_output_size=3,
        observation_offset=0.5,
    )  # fmt: skip
    trained.learn(2, init_at_random_ep_len=True)
    live = trained.alg.get_policy()
    assert live.obs_normalizer.count == 2 * 24 * COUNT
    save_policy(trained, tmp_path, task="robust_policies/Pendulum-v0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    policy = load_policy(tmp_path)
    assert policy.observation_space == trained.env.env.single_observation_space
    assert policy.action_space == trained.env.env.single_action_space
    torch.testing.assert_close(policy.log_std.exp(), live.distribution.std_param.detach())

    live = trained.get_inference_policy()
    live.reset()
    state, rng = None, np.random.default_rng(0)
    with torch.no_grad():
        for k in range(20):
            observation = rng.normal(size=(COUNT, 3)).astype(np.float32) * [1.0, 1.0, 3.0]
            starts = rng.random(COUNT) < 0.2 if k else None
            if starts is not None:
                live.reset(torch.from_numpy(starts))
            action, state = policy.predict(observation.astype(np.float32), state, starts)
            expected = live(groups(torch.from_numpy(observation).float())).clamp(-2.0, 2.0)
            np.testing.assert_allclose(action, expected.numpy(), rtol=1e-4, atol=1e-5)

    certificate = policy.certificate()
    assert certificate.status == "PASS" and certificate.signals.reads == RAW
    assert certify_model(live).signals.reads == GIVEN
    played = run_episodes(policy, "robust_policies/Pendulum-v0", "gaussian", [0.0], 2, 0)
    assert np.isfinite(played.returns).all()


def test_the_normaliser_is_a_factor_of_the_certificate():
    made = model(obs_normalization=True, observation_scale=[1.0, 2.0, 3.0], observation_offset=0.3, action_scale=2.0)
    made.update_normalization(groups(torch.randn(200, 3) * torch.tensor([0.1, 1.0, 9.0]) + 2))
    policy = made.deployed()
    normalizer = made.obs_normalizer
    apart = Actor(
        copy.deepcopy(made.body), made.head, FrozenNormalizer(normalizer.mean, normalizer.std + normalizer.eps, 1e6)
    )
    expected = certify_actor(apart, policy.action_space, reads=GIVEN).gamma_raw
    assert made.certificate().gamma_raw == pytest.approx(expected, rel=1e-5)
    state = torch.zeros(COUNT, made.cell.state_size)
    values = torch.randn(COUNT, 3, dtype=torch.float64)
    torch.testing.assert_close(
        policy.actor.step(values, state)[0], apart.step(values, state)[0].float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(2))
def test_the_guarantee_holds_whatever_the_parameters(seed, tmp_path):
    made = randomize(model(seed=seed, obs_normalization=True), 3.0, seed)
    made.update_normalization(groups(torch.randn(50, 3)))
    save_policy(made, tmp_path)
    policy = load_policy(tmp_path)
    found = verify(policy.cell)
    assert found.status == "PASS" and found.gamma <= 5.0 * (1 + 1e-6)
    assert policy.certificate().status == "PASS"


def test_hidden_dims_and_activation_stand_in_for_the_cells():
    made = model(hidden_dims=[7, 8], activation="elu", cell_kwargs={"state_size": 3, "features": 4})
    assert (made.cell.hidden_sizes, made.cell.activation.name) == ((7, 8), "elu")
    kept = model(hidden_dims=[7, 8], activation="elu", cell_kwargs={**SMALL["r2dn"], "activation": "tanh"})
    assert (kept.cell.hidden_sizes, kept.cell.activation.name) == ((6,), "tanh")
    assert model("gru", hidden_dims=[7], activation="elu").cell.state_size == 3


@pytest.mark.parametrize(("std_type", "given"), [("scalar", 0.3), ("log", 0.3), ("scalar", -1.0)])
def test_the_deviation_is_kept(std_type, given):
    made = model(distribution_cfg={**GAUSSIAN, "std_type": std_type})
    with torch.no_grad():
        parameter = next(made.distribution.parameters())
        parameter.fill_(np.log(given) if std_type == "log" else given)
    std = max(given, 1e-6)
    torch.testing.assert_close(made.deployed().log_std.exp(), torch.full((2,), std))


def test_what_is_wrong_is_said():
    with pytest.raises(InvalidValueError, match="HeteroscedasticGaussianDistribution; expected a GaussianDistribution"):
        model(distribution_cfg={"class_name": "HeteroscedasticGaussianDistribution"})
    with pytest.raises(UnknownNameError, match="cell_kwargs"):
        model(cell_kwarg={})
    with pytest.raises(UnknownNameError, match="r2dn"):
        RslRlCellModel(groups(torch.zeros(1, 3)), {"actor": ["policy"]}, "actor", 1, cell="r2dm")
    with pytest.raises(InvalidValueError, match="no actor"):
        model(distribution_cfg=None).deployed()
    other = runner(critic={"class_name": "MLPModel"})
    other.alg.get_policy = lambda: other.alg.critic
    with pytest.raises(InvalidValueError, match="OnPolicyRunner cannot be deployed"):
        deploy(other)


def test_another_environment_tells_sizes_only(tmp_path):
    made = model()
    save_policy(made, tmp_path)
    policy = load_policy(tmp_path)
    assert not policy.raw and policy.observation_space.shape == (3,) and not policy.action_space.is_bounded()
    action, _ = policy.predict(np.ones(3, np.float32) * 100)
    torch.testing.assert_close(torch.from_numpy(action), made(groups(torch.ones(1, 3) * 100))[0].detach())
    privileged = runner(states=True, episode=9).alg.critic
    privileged.distribution = utils.resolve_callable("GaussianDistribution")(1)
    env = bridges.RslRlVecEnv(TorchVectorEnv("pendulum", 2), states=True)
    assert privileged.deployed(env=env).raw is False and privileged.deployed(env=env).observation_space.shape == (5,)


@pytest.mark.parametrize("cell", ["r2dn", "lbdn"])
def test_rsl_rls_exporters_write_it(cell, tmp_path):
    trained = runner(cell=cell, cell_kwargs=SMALL[cell], obs_normalization=True, action_scale=2.0)
    randomize(trained.alg.actor, 0.3)
    trained.alg.actor.update_normalization(groups(torch.randn(50, 3) * 2))
    policy = deploy(trained)
    trained.export_policy_to_jit(str(tmp_path))
    scripted = torch.jit.load(tmp_path / "policy.pt")
    step = trained.alg.get_policy().as_onnx(verbose=False)
    names = (["obs", "h_in"], ["actions", "h_out"]) if cell == "r2dn" else (["obs"], ["actions"])
    assert (step.input_names, step.output_names) == names
    for _ in range(2):
        state = policy.cell.initial_state(1)
        carried = step.get_dummy_inputs()[1:]
        for observation in torch.randn(4, 1, 3):
            with torch.no_grad():
                expected, state = policy.actor.step(observation, state)
                given = step(observation, *carried)
            given, carried = (given[0], given[1:]) if carried else (given, carried)
            torch.testing.assert_close(given, expected)
            torch.testing.assert_close(scripted(observation), expected)
        scripted.reset()


@pytest.mark.soak
def test_rsl_rls_onnx_file_is_the_policy(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
    trained = runner(obs_normalization=True)
    randomize(trained.alg.actor, 0.3)
    policy = deploy(trained)
    trained.export_policy_to_onnx(str(tmp_path))
    session = evaluator(str(tmp_path / "policy.onnx"))
    state, carried = policy.cell.initial_state(1), np.zeros((1, 1, policy.cell.state_size), np.float32)
    for observation in torch.randn(5, 1, 3):
        with torch.no_grad():
            expected, state = policy.actor.step(observation, state)
        action, carried = session.run(None, {"obs": observation.numpy(), "h_in": carried})
        np.testing.assert_allclose(action, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_actions_of_a_bounded_box_are_clipped():
    env = bridges.RslRlVecEnv(gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=2), seed=0)
    made = RslRlCellModel(
        env.get_observations(), {"actor": ["policy"]}, "actor", 1,
        distribution_cfg=dict(GAUSSIAN), cell_kwargs=SMALL["r2dn"], action_offset=9.0,
    )  # fmt: skip
    action, _ = made.deployed(env=env).predict(np.zeros(3, np.float32))
    assert action.tolist() == [2.0]
