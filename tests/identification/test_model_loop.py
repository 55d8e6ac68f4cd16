"""The loop of a policy with an identified model: composed as it is stepped, proven where it can be, refused else."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from small_models import LIMIT, policy_of
from typer.testing import CliRunner

from robust_policies.cli.app import app
from robust_policies.control.norms import radius
from robust_policies.envs import load_plant
from robust_policies.envs.registration import IDENTIFIED
from robust_policies.errors import NotCertifiableError, ShapeError
from robust_policies.evaluation import certify_model_loop
from robust_policies.identification import prove_model_loop
from robust_policies.identification.loop import model_loop
from robust_policies.networks import make_cell
from robust_policies.policies import load_policy, policy_from_cell, save_policy
from robust_policies.train import parse_recipe, train

MODEL = {"r2dn": {}, "ren": {"features": 4}}


def centred(module):
    """Return a module without offsets."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.rsplit(".", 1)[-1] in ("bx", "bv", "by", "b", "bias"):
                value.zero_()
    return module


def plant_of(folder, model, limit=LIMIT):
    """Return the task's plant of a model."""
    model.save(folder / "model")
    content = {
        "schema": 1,
        "plant": "robust_policies.identification.plant:IdentifiedPlant",
        "max_episode_steps": 20,
        "model": str(folder / "model"),
        "limits": {
            side: [sign * limit] * len(model.signals.inputs)
            for side, sign in (("action_low", -1.0), ("action_high", 1.0))
        },
    }
    (folder / "task").mkdir()
    (folder / "task" / "task.yaml").write_text(yaml.safe_dump(content))
    return load_plant(folder / "task")


@torch.no_grad()
def simulated(plant, policy, start, errors):
    """Return the actions (time, nu) that the task's plant gets, from a state (nx,), with errors (time, ny) added."""
    state, hidden, found = torch.as_tensor(start)[None], None, []
    for error in errors:
        seen = plant.observe(state, {})[0].numpy() + error
        action, hidden = policy.predict(seen[None].astype(policy.observation_space.dtype), hidden)
        applied = np.clip(action[0].astype(float), plant.action_low, plant.action_high)
        found.append(applied)
        state = plant.advance(state, torch.as_tensor(applied)[None], {})
    return np.array(found)


def activation(cell):
    """Return the activation of a cell on arrays."""
    return lambda v: getattr(torch, cell.activation.name)(torch.as_tensor(v)).numpy()


@pytest.mark.parametrize(
    ("policy", "cell", "nu", "ny", "dtype", "tolerance"),
    [
        ("r2dn", "r2dn", 2, 2, torch.float64, 1e-10),
        ("ren", "ren", 2, 1, torch.float64, 1e-10),
        ("mlp", "r2dn", 1, 2, torch.float64, 1e-10),
        ("lbdn", "ren", 1, 1, torch.float64, 1e-10),
        ("r2dn", "r2dn", 1, 1, torch.float32, 1e-6),
    ],
)
def test_the_composed_matrices_step_as_the_task_and_the_policy_do(
    tmp_path, model, policy, cell, nu, ny, dtype, tolerance
):
    identified = model(cell, nu, ny, **MODEL[cell])
    centred(identified.cell)
    zero = {"input_offset": (0.0,) * nu, "output_offset": (0.0,) * ny}
    identified.signals = dataclasses.replace(identified.signals, **zero)
    acting = policy_of(policy, ny, nu, gain=3.0, dtype=dtype)
    centred(acting.actor)
    plant = plant_of(tmp_path, identified)
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(50, ny)).astype(acting.observation_space.dtype).astype(float)
    start = 0.3 * rng.normal(size=plant.state_size)
    expected = simulated(plant, acting, start, errors)
    assert (np.abs(expected) == LIMIT).any() and (np.abs(expected) < LIMIT).any()
    loop = model_loop(acting, identified)
    m = loop.neurons.model
    limits = LIMIT / np.array(identified.signals.input_scale)
    acts = [
        activation(identified.cell),
        activation(getattr(acting.cell, "network", acting.cell) if policy == "lbdn" else acting.cell),
        lambda v: np.clip(v, -limits, limits),
    ]
    ends = np.cumsum(loop.blocks)
    owner = np.repeat([0, 1, 2, 0], loop.blocks)
    x = np.concatenate((start, np.zeros(m.sizes[0] - len(start))))
    found = []
    for error in errors:
        v, w = m.C1 @ x + m.D12 @ error, np.zeros(m.sizes[1])
        for k in range(len(w)):
            value = v[k] + m.D11[k] @ w
            place = k - (ends[1] if owner[k] == 2 else k)
            w[k] = acts[owner[k]](np.full(nu, value))[place]
        found.append(m.C2 @ x + m.D21 @ w + m.D22 @ error)
        x = m.A @ x + m.B1 @ w + m.B2 @ error
    assert np.abs(np.array(found) - expected).max() <= tolerance


@pytest.mark.parametrize(("name", "cell"), [("r2dn", "r2dn"), ("mlp", "r2dn"), ("lbdn", "ren"), ("ren", "ren")])
def test_a_loop_of_small_gain_is_proven_and_no_secant_exceeds_its_gain(tmp_path, model, name, cell):
    identified, acting = model(cell, 1, 1, **MODEL[cell]), policy_of(name, gain=0.1, limit=2.0)
    found = prove_model_loop(acting, identified)
    assert found.status == "PASS" and found.rate is not None and 0 < found.rate < 1 and found.gain is not None
    assert "model and not about the plant" in found.claim and "clips" in found.claim
    plant = plant_of(tmp_path, identified, 2.0)
    rng = np.random.default_rng(0)
    largest = 0.0
    for size in (1e-3, 0.1, 3.0):
        for _ in range(4):
            start, first = rng.normal(size=plant.state_size), rng.normal(size=(25, 1))
            change = size * rng.normal(size=first.shape)
            actions = [simulated(plant, acting, start, errors) for errors in (first, first + change)]
            largest = max(largest, float(np.linalg.norm(actions[1] - actions[0]) / np.linalg.norm(change)))
    assert 0.05 * found.gain < largest <= found.gain


@torch.no_grad()
def test_the_state_decays_as_it_is_claimed_to(tmp_path, model):
    identified, acting = model("r2dn", 1, 1), policy_of(gain=0.1, limit=2.0)
    found, plant = prove_model_loop(acting, identified), plant_of(tmp_path, identified, 2.0)
    assert found.rate is not None and found.overshoot is not None
    rng = np.random.default_rng(1)
    states = [torch.as_tensor(rng.normal(size=(1, plant.state_size))) for _ in range(2)]
    hidden = [rng.normal(size=(1, acting.cell.state_size)) for _ in range(2)]

    def distance():
        parts = states[1] - states[0], hidden[1] - hidden[0]
        return float(np.linalg.norm(np.concatenate([np.asarray(part)[0] for part in parts])))

    first = distance()
    for t in range(1, 40):
        for k in range(2):
            action, hidden[k] = acting.predict(plant.observe(states[k], {}).numpy(), hidden[k])
            states[k] = plant.advance(states[k], torch.as_tensor(action), {})
        assert distance() <= found.overshoot * found.rate**t * first + 1e-12


def test_a_loop_that_is_unstable_or_may_expand_is_not_proven(model):
    identified = model("r2dn", 1, 1)
    for gain in (300.0, -300.0):
        acting = policy_of("lbdn", gain=gain)
        found = prove_model_loop(acting, identified)
        assert (found.status, found.rate, found.gain) == ("NOT_PROVEN", None, None)
        assert found.reason and "does not mean that it is unstable" in found.claim
    # One of the two really expands where the model's and the policy's slopes are those at zero.
    loops = []
    for gain in (300.0, -300.0):
        m = model_loop(policy_of("lbdn", gain=gain), identified).neurons.model
        inside = np.linalg.solve(np.eye(m.sizes[1]) - m.D11, m.C1)
        loops.append(radius(m.A + m.B1 @ inside))
    assert max(loops) > 1.0


def test_what_has_no_loop_is_refused_in_a_line(model):
    for name in ("lstm", "gru"):
        with pytest.raises(NotCertifiableError, match=f"cell is '{name}'"):
            prove_model_loop(policy_of(), model(name, 1, 1))
    with pytest.raises(NotCertifiableError, match="one identified model"):
        prove_model_loop(policy_of(), [model(nu=1, ny=1)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="policy's D22"):
        prove_model_loop(policy_of(ny=2), model(nu=1, ny=1))
    with pytest.raises(NotCertifiableError, match=r"gates|LSTM"):
        torch.manual_seed(0)
        box = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1.0, 1.0, (1,))
        prove_model_loop(policy_from_cell(make_cell("lstm", 1, 1, state_size=2), *box), model(nu=1, ny=1))


def test_certify_prints_and_stores_it(tmp_path, model):
    model("r2dn", 1, 1, dtype=torch.float32).save(tmp_path / "model")
    model("lstm", 1, 1, dtype=torch.float32).save(tmp_path / "lstm")
    recipe = parse_recipe(
        {
            "task": {
                "id": IDENTIFIED,
                "kwargs": {"model": str(tmp_path / "model"), "max_episode_steps": 5},
                "num_envs": 2,
            },
            "policy": {"cell": "lbdn", "hidden_sizes": [3], "gamma": 0.1},
            "algorithm": {"name": "apg", "total_steps": 10, "horizon": 5},
            "checkpoints": {"evaluate_episodes": 1, "certify_every": 0},
        },
        "test",
    )
    train(recipe, tmp_path / "run")
    done = CliRunner().invoke(app, ["certify", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    stored = json.loads((tmp_path / "run" / "model_loop.json").read_text())
    assert stored["status"] == "PASS" and f"PASS: {stored['claim']}" in done.output
    policy = load_policy(tmp_path / "run")
    for models, words in (
        ([str(tmp_path / "model")] * 2, "ensemble of 2"),
        (str(tmp_path / "lstm"), "'lstm'"),
        (str(tmp_path / "gone"), "gone"),
    ):
        folder = tmp_path / f"other_{len(words)}"
        save_policy(policy, folder, {"id": IDENTIFIED, "kwargs": {"model": models}})
        content = certify_model_loop(folder)
        assert content is not None and content["status"] == "NOT_CERTIFIED" and words in content["reason"]
    save_policy(policy, tmp_path / "elsewhere", task="robust_policies/Pendulum-v0")
    assert certify_model_loop(tmp_path / "elsewhere") is None
