"""An identified model as an environment: one, many, differentiable, and with the band of an ensemble."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from gymnasium.utils.env_checker import check_env
from small_data import TIME_STEP, write_csv

from robust_policies.control.linearize import linearize_plant
from robust_policies.envs import load_plant
from robust_policies.envs.batch import make_batch, ours, plant_of
from robust_policies.envs.registration import IDENTIFIED
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UserError
from robust_policies.identification import IdentifiedModel, identify, load_model, parse_settings
from robust_policies.identification.plant import IdentifiedPlant
from robust_policies.policies import load_policy
from robust_policies.train import parse_recipe, train


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Return the folders of two models of the same data, barely trained."""
    folder = tmp_path_factory.mktemp("ensemble")
    files = [str(write_csv(folder / f"r{k}.csv", k, 120)) for k in range(3)]
    made = []
    for seed in (0, 1):
        settings = parse_settings(
            {
                "seed": seed,
                "data": {"files": files, "inputs": ["u"], "outputs": ["y"]},
                "cell": {"name": "r2dn", "state_size": 3, "features": 4, "hidden_sizes": [5]},
                "algorithm": {"total_steps": 2, "batch": 2, "window": 40, "burn_in": 10},
            },
            "test",
        )
        identify(settings, folder / f"m{seed}", page=False)
        made.append(str(folder / f"m{seed}"))
    return made


def task_of(folder, model, **content):
    """Return a folder with a task.yaml of an identified plant."""
    folder.mkdir(exist_ok=True)
    base = {"schema": 1, "plant": "robust_policies.identification.plant:IdentifiedPlant", "max_episode_steps": 20}
    (folder / "task.yaml").write_text(yaml.safe_dump({**base, "model": model, **content}))
    return folder


def test_it_is_made_by_whoever_imports_gymnasium_only(ensemble, tmp_path):
    code = (
        f"import gymnasium; e = gymnasium.make({IDENTIFIED!r}, model={ensemble[0]!r}); print(e.reset(seed=0)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "(1,)", done.stderr


def test_it_passes_gymnasiums_check_and_ends_in_time(ensemble):
    env = gymnasium.make(IDENTIFIED, model=ensemble[0], max_episode_steps=7)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=1)
    ends = [env.step(env.action_space.sample())[3] for _ in range(7)]
    assert ends == [False] * 6 + [True]
    assert env.unwrapped.plant.time_step == pytest.approx(TIME_STEP)


def test_a_recorded_input_gives_the_models_simulation(ensemble):
    model = load_model(ensemble[0])
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, size=(15, 1))
    env = gymnasium.make(IDENTIFIED, model=ensemble[0], max_episode_steps=50).unwrapped
    env.reset(seed=0)
    start = env.plant.starts[3].numpy()
    env.reset(options={"state": np.concatenate((start, [0.0]))})
    seen = np.stack([env.step(u)[0] for u in inputs])
    # The state goes the same way; a sensor then reads with the input held until then.
    _, states = model.cell.double_copy().trajectory(
        torch.as_tensor(model.signals.scaled(inputs)[0])[:, None], torch.as_tensor(start)[None]
    )
    cell = model.cell.double_copy()
    explicit = cell.explicit()
    held = torch.as_tensor(model.signals.scaled(inputs)[0])
    outputs = torch.cat([cell.step(explicit, held[t : t + 1], states[t])[0] for t in range(15)])
    expected = outputs.detach().numpy() * model.signals.output_scale + model.signals.output_offset
    assert np.allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_many_at_once_do_what_one_does(ensemble):
    many = gymnasium.make_vec(IDENTIFIED, num_envs=3, model=ensemble, dtype="float64")
    one = gymnasium.make(IDENTIFIED, model=ensemble).unwrapped
    first, _ = many.reset(seed=5)
    for k in range(3):
        observation, _ = one.reset(seed=5 + k)
        assert np.allclose(observation, first[k].numpy(), rtol=1e-5)
    actions = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    observation, reward, *_ = many.step(actions)
    single = one.step(actions[2].numpy().astype(np.float32))
    assert np.allclose(single[0], observation[2].numpy(), rtol=1e-5) and single[1] == pytest.approx(
        float(reward[2]), rel=1e-5
    )
    assert ours(IDENTIFIED) and isinstance(plant_of(IDENTIFIED, {"model": ensemble}), IdentifiedPlant)
    made = make_batch(IDENTIFIED, 2, {"model": ensemble[0]}, [{"ObservationNoise": 0.1}])
    assert made.reset(seed=0)[0].shape == (2, 1)


def test_gradients_go_through_the_steps(ensemble, tmp_path):
    plant = load_plant(task_of(tmp_path / "task", ensemble, cost={"band": 0.5}))
    params = plant.prepare(plant.nominal())
    state = plant.initial(torch.rand(4, 1, dtype=torch.float64), params)
    action = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)

    def run(start, act):
        following = plant.advance(start, act, params)
        return plant.observe(following, params), plant.reward(start, act, following, params)

    assert torch.autograd.gradcheck(run, (state.requires_grad_(), action))


def test_the_band_holds_the_members_and_their_mean(ensemble, tmp_path):
    plant = load_plant(task_of(tmp_path / "task", ensemble))
    params = plant.prepare(plant.nominal())
    state = plant.initial(torch.rand(6, 1, dtype=torch.float64), params)
    state = plant.advance(state, torch.ones(6, 1, dtype=torch.float64), params)
    low, high = plant.band(state)
    seen = plant.observe(state, params)
    assert bool((low < seen).all()) and bool((seen < high).all())
    assert torch.allclose(seen, plant.members(state).mean(-2))
    alone = load_plant(task_of(tmp_path / "alone", ensemble[:1]))
    first = torch.cat((state[:, :3], state[:, 6:]), 1)
    assert torch.allclose(alone.observe(first, params), plant.members(state)[:, 0])
    assert torch.equal(*alone.band(first))


def test_a_spread_of_the_members_costs(ensemble, tmp_path):
    plants = [load_plant(task_of(tmp_path / f"{w}", ensemble, cost={"band": w})) for w in (0.0, 2.0)]
    state = plants[0].initial(torch.rand(5, 1, dtype=torch.float64), {})
    action = torch.ones(5, 1, dtype=torch.float64)
    following = plants[0].advance(state, action, {})
    cheap, dear = (plant.reward(state, action, following, {}) for plant in plants)
    scale = plants[0].signals.output_scale[0]
    spread = (plants[0].members(following)[..., 0] / scale).var(-1, unbiased=False)
    assert torch.allclose(cheap - dear, 2.0 * spread) and bool((dear < cheap).all())


def test_each_episode_may_be_of_one_member(ensemble, tmp_path):
    plant = load_plant(task_of(tmp_path / "task", ensemble, member="each"))
    uniform = torch.tensor([[0.2, 0.1], [0.2, 0.9]], dtype=torch.float64)
    state = plant.advance(plant.initial(uniform, {}), torch.ones(2, 1, dtype=torch.float64), {})
    members = plant.members(state)
    assert torch.equal(plant.observe(state, {})[:, 0], torch.stack((members[0, 0, 0], members[1, 1, 0])))


def test_episodes_begin_where_the_records_did_if_that_is_asked_for(ensemble, tmp_path):
    plant = load_plant(task_of(tmp_path / "begin", ensemble, starts="beginnings"))
    anywhere = load_plant(task_of(tmp_path / "any", ensemble))
    assert plant.starts.shape == (1, 6) and len(anywhere.starts) == 120
    u, y = np.loadtxt(Path(ensemble[0]).parent / "r0.csv", delimiter=",", skiprows=1)[:, 1:].T
    for model, begun in zip(map(load_model, ensemble), plant.starts.split(3, 1), strict=True):
        # The ten samples of the burn-in have passed.
        assert np.allclose(begun[0].numpy(), model.encode(u[:10], y[:10]), rtol=1e-6, atol=1e-7)
    state = plant.initial(torch.rand(5, 1, dtype=torch.float64), {})
    assert torch.equal(state[:, :6], plant.starts.expand(5, -1))
    (older := tmp_path / "older").mkdir()
    for name in ("model.json", "model.safetensors"):
        (older / name).write_bytes((Path(ensemble[0]) / name).read_bytes())
    (older / "states.safetensors").write_bytes(safetensors.torch.save({"states": anywhere.starts[:, :3].contiguous()}))
    load_plant(task_of(tmp_path / "wrong", str(older)))
    with pytest.raises(CorruptFileError, match="'begins'"):
        load_plant(task_of(tmp_path / "wrong", str(older), starts="beginnings"))


def test_the_cost_and_the_limits_are_those_of_the_task(ensemble, tmp_path):
    cost = {"outputs": [2.0], "actions": [0.5], "setpoint": [1.0]}
    limits = {"action_low": [-0.2], "action_high": [0.3]}
    plant = load_plant(task_of(tmp_path / "task", ensemble[:1], cost=cost, limits=limits, noise=[0.1]))
    state = plant.initial(torch.rand(2, 1, dtype=torch.float64), {})
    big, edge = (torch.full((2, 1), value, dtype=torch.float64) for value in (5.0, 0.3))
    assert torch.equal(plant.advance(state, big, {}), plant.advance(state, edge, {}))
    following, s = plant.advance(state, edge, {}), plant.signals
    y = plant.observe(following, {})[:, 0]
    u = (0.3 - s.input_offset[0]) / s.input_scale[0]
    expected = -(2.0 * ((y - 1.0) / s.output_scale[0]) ** 2 + 0.5 * u**2)
    assert torch.allclose(plant.reward(state, edge, following, {}), expected)
    noisy = plant.observe(following, {}, torch.ones(2, 1, dtype=torch.float64))
    assert torch.allclose(noisy[:, 0] - y, torch.full((2,), 0.1, dtype=torch.float64))
    whole = load_plant(task_of(tmp_path / "whole", ensemble[:1]))
    assert (whole.action_low[0], whole.action_high[0]) == s.input_range[0]


def test_a_policy_is_trained_on_it_and_its_linear_model_known(ensemble, tmp_path):
    recipe = parse_recipe(
        {
            "task": {"id": IDENTIFIED, "kwargs": {"model": ensemble, "max_episode_steps": 10}, "num_envs": 2},
            "policy": {"cell": "r2dn", "state_size": 2, "features": 2, "hidden_sizes": [3]},
            "algorithm": {"name": "apg", "total_steps": 40, "horizon": 10},
            "checkpoints": {"evaluate_episodes": 2, "certify_every": 0},
        },
        "test",
    )
    result = train(recipe, tmp_path / "run")
    assert result.best_reward is not None and np.isfinite(result.best_reward)
    assert load_policy(tmp_path / "run").predict(np.zeros((1, 1)))[0].shape == (1, 1)
    model = linearize_plant(load_plant(task_of(tmp_path / "task", ensemble[:1])))
    assert model.A.shape == (4, 4) and np.abs(np.linalg.eigvals(model.A)).max() < 1


def test_what_does_not_fit_is_refused(ensemble, tmp_path):
    with pytest.raises(UserError, match="model is missing; expected the folder"):
        gymnasium.make(IDENTIFIED)
    with pytest.raises(MissingFileError, match="identify"):
        gymnasium.make(IDENTIFIED, model=str(tmp_path))
    with pytest.raises(UserError, match="unknown key 'model'"):
        gymnasium.make("robust_policies/Pendulum-v0", model=ensemble[0])
    for content, words in (
        ({"time_step": 0.5}, "time_step is 0.5; expected 0.1"),
        ({"cost": {"outputs": [1.0, 2.0]}}, "cost.outputs has 2 number"),
        ({"limits": {"action_low": [3.0], "action_high": [1.0]}}, "action_low below"),
        ({"cost": {"output": [1.0]}}, "Did you mean 'cost.outputs'"),
    ):
        with pytest.raises(UserError, match=words):
            load_plant(task_of(tmp_path / "wrong", ensemble[0], **content))
    model = load_model(ensemble[0])
    signals = dataclasses.replace(model.signals, outputs=("z",))
    IdentifiedModel(model.cell, signals).save(tmp_path / "other")
    with pytest.raises(InvalidValueError, match="other signals"):
        load_plant(task_of(tmp_path / "wrong", [ensemble[0], str(tmp_path / "other")]))
