"""The runtime gives what the torch policy gives, to the rounding of its numbers, and loads no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.control import lqg
from robust_policies.control.linear_model import from_matrices
from robust_policies.envs import load_plant
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, NonFiniteError, ShapeError
from robust_policies.networks import ACTIVATIONS, Dissipative, make_cell
from robust_policies.networks.baselines import MLPCell
from robust_policies.policies import DeployedPolicy, YoulaOptions, YoulaPolicy, load_policy, save_policy
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.observations import flat_size
from robust_policies.policies.spaces import parameter_count
from robust_policies.policies.storage import running_arrays_agree
from robust_policies.policies.window import WindowCell
from robust_policies.policies.youla.base import BaseController
from robust_policies.runtime import load
from robust_policies.runtime.activations import ACTIVATIONS as OURS

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-1.5, 2.0, (2,), np.float32)
SUPPLY = Dissipative(-torch.eye(2), torch.full((3, 2), 0.1), 4.0 * torch.eye(3))
CELLS = {
    "r2dn contracting": ("r2dn", {"state_size": 4, "features": 5, "hidden_sizes": [6, 7]}),
    "r2dn gamma": ("r2dn", {"state_size": 4, "features": 5, "hidden_sizes": [6], "gamma": 3.0, "activation": "tanh"}),
    "r2dn supply": ("r2dn", {"state_size": 3, "features": 4, "hidden_sizes": [6], "guarantee": SUPPLY}),
    "r2dn sandwich": ("r2dn", {"state_size": 4, "features": 5, "hidden_sizes": [], "linear_output": False}),
    "ren": ("ren", {"state_size": 4, "features": 5, "gamma": 3.0, "activation": "elu"}),
    "nemon": ("nemon", {"state_size": 4, "features": 6, "gamma": 3.0, "layers": 3}),
    "nemon implicit": ("nemon", {"state_size": 3, "features": 5, "block_size": 1, "implicit": True, "passes": 9}),
    "l2ru": ("l2ru", {"state_size": 8, "features": 5, "gamma": 3.0}),
    "convex": ("convex", {"state_size": 5, "gamma": 3.0}),
    "lipschitz_rnn": ("lipschitz_rnn", {"state_size": 5}),
    "lipschitz_rnn rk2": ("lipschitz_rnn", {"state_size": 5, "method": "rk2", "step_size": 0.3}),
    "lbdn": ("lbdn", {"hidden_sizes": [6, 6], "gamma": 4.0, "trainable_gamma": True}),
    "lbdn sandwich": ("lbdn", {"hidden_sizes": [6], "linear_output": False}),
    "lbdn householder": ("lbdn", {"hidden_sizes": [6, 4], "activation": "householder"}),
    "mlp": ("mlp", {"hidden_sizes": [8, 4], "activation": "maxmin"}),
    "mlp householder": ("mlp", {"hidden_sizes": [8, 4], "activation": "householder"}),
    "lstm": ("lstm", {"state_size": 8}),
    "gru": ("gru", {"state_size": 5}),
}


def policy(cell, observations=BOX, actions=ACTION, normalizer=None, offset=0.2, squash=False, linear=True):
    count = parameter_count(actions)
    head = MeanHead(cell.output_size, count, linear, 0.7, 0.1, squash=squash)
    scaling = Scaling(cell.input_size, 0.5, offset)
    for parameter in (*cell.parameters(), *head.parameters()):
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return DeployedPolicy(Actor(ScaledCell(cell, scaling), head, normalizer), observations, actions, torch.zeros(count))


def window(masked):
    cell = WindowCell(make_cell("r2dn", 3, 4, **CELLS["r2dn contracting"][1]), MLPCell(4, [5], 2), 4, masked)
    cell.blank.fill_(0.3)
    return cell


def agree(saved, folder, steps=25, tolerance=2e-5, draw=None):
    """Assert that both play the same episodes, alone and in a batch, and return the runtime's policy."""
    save_policy(saved, folder)
    loaded, ours = load_policy(folder), load(folder)
    random = np.random.default_rng(0)
    draw = draw or (lambda shape: random.standard_normal((*shape, *saved.observation_space.shape)).astype(np.float32))
    for shape in ((), (3,)):
        state, other = None, None
        for _ in range(steps):
            seen, starts = draw(shape), random.random(shape[0] if shape else 1) < 0.1
            action, state = loaded.predict(seen, state, starts)
            same, other = ours.predict(seen, other, starts)
            assert (same.shape, same.dtype) == (action.shape, action.dtype)
            assert (other.shape, other.dtype) == (state.shape, state.dtype)
            np.testing.assert_allclose(same, action, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(other, state, rtol=tolerance, atol=tolerance)
    return ours


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_gives_what_torch_gives(name, tmp_path):
    torch.manual_seed(1)
    kind, options = CELLS[name]
    agree(policy(make_cell(kind, 3, 2, **options)), tmp_path)


@pytest.mark.parametrize("masked", [True, False])
def test_a_window_begins_where_the_episode_did(masked, tmp_path):
    torch.manual_seed(1)
    agree(policy(window(masked)), tmp_path)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name):
    values = torch.linspace(-30, 30, 4001)
    assert set(OURS) == {*ACTIVATIONS, "maxmin"}
    expected = ACTIVATIONS[name].function(values.double()).numpy()
    np.testing.assert_allclose(OURS[name](values.double().numpy()), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("case", ["normalizer", "no offset", "squash", "float64", "exact offset"])
def test_what_stands_around_the_cell(case, tmp_path):
    torch.manual_seed(1)
    cell = make_cell("gru", 3, 2, state_size=4)
    made = policy(
        cell.double() if case == "float64" else cell,
        normalizer=FrozenNormalizer(torch.tensor([0.1, -1.0, 2.0]), torch.tensor([0.5, 1.0, 3.0]), 1.5)
        if case == "normalizer"
        else None,
        offset={"no offset": None, "exact offset": 1e6 + 0.123}.get(case, 0.2),
        squash=case == "squash",
        linear=case != "no offset",
    )
    if case == "float64":
        made.actor.double()
    if case == "exact offset":
        random = np.random.default_rng(0)
        agree(made, tmp_path, draw=lambda shape: 1e6 + random.standard_normal((*shape, 3)))
    else:
        agree(made, tmp_path)


MIXED = spaces.Dict(
    [("b", spaces.Box(-1, 1, (2,), np.float32)), ("a", spaces.Discrete(3, start=5)), ("c", spaces.MultiBinary(2))]
)


@pytest.mark.parametrize(
    "actions",
    [spaces.Discrete(4, start=-1), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1, 1, (2, 2))],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("observations", [MIXED, spaces.MultiDiscrete([2, 3])], ids=["Dict", "MultiDiscrete"])
def test_choices_and_dicts(observations, actions, tmp_path):
    torch.manual_seed(1)
    cell = make_cell("gru", flat_size(observations), 2, state_size=4)
    observations.seed(0)

    def draw(shape):
        many = [observations.sample() for _ in range(*shape or (1,))]
        if isinstance(observations, spaces.Dict):
            stacked = {key: np.stack([one[key] for one in many]) for key in observations.spaces}
            return stacked if shape else {key: value[0] for key, value in stacked.items()}
        return np.stack(many) if shape else many[0]

    agree(policy(cell, observations, actions), tmp_path, draw=draw)


@pytest.mark.parametrize("delay", [0, 2])
def test_a_youla_policy(delay, tmp_path):
    torch.manual_seed(1)
    plant = load_plant("mass_spring_damper")
    limits = {"action_low": plant.action_low, "action_high": plant.action_high}
    given = {"W": plant.E @ plant.E.T, "V": plant.F @ plant.F.T, "Q": plant.Q, "R": 30 * plant.R}
    model = from_matrices(plant.A, plant.B, plant.C, **given, **limits)
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    acts = spaces.Box(plant.action_low.astype(np.float32), plant.action_high.astype(np.float32))
    options = YoulaOptions(reserve=0.1, delay=delay, quantum=0.01)
    cell = make_cell("r2dn", 1, 1, state_size=3, features=4, hidden_sizes=[4])
    inner = Actor(ScaledCell(cell, Scaling(1)), MeanHead(1, 1, False, 5.0))
    design = lqg.design(model)
    base = BaseController(model, design, box, acts, options)
    youla = DeployedPolicy(inner, base.youla_observation_space, base.youla_action_space)
    made = YoulaPolicy(design, model, youla, observation_space=box, action_space=acts, options=options)
    agree(made, tmp_path, tolerance=1e-5)


def test_exploration_has_the_stored_deviation(tmp_path):
    torch.manual_seed(1)
    made = policy(make_cell("mlp", 3, 2, hidden_sizes=[4]), actions=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    made.log_std = torch.tensor([-1.0, 0.5])
    save_policy(made, tmp_path)
    ours, seen = load(tmp_path, seed=3), np.zeros((20_000, 3), np.float32)
    mean, _ = ours.predict(seen[:1])
    found, _ = ours.predict(seen, deterministic=False)
    np.testing.assert_allclose(found.std(0), np.exp([-1.0, 0.5]), rtol=0.03)
    np.testing.assert_allclose(found.mean(0), mean[0], atol=0.05)


def test_what_does_not_fit_is_refused_in_words(tmp_path):
    torch.manual_seed(1)
    made = policy(make_cell("lstm", 3, 2, state_size=4))
    with pytest.raises(MissingFileError, match=r"policy\.json does not exist"):
        load(tmp_path)
    save_policy(made, tmp_path)
    ours = load(tmp_path)
    with pytest.raises(ShapeError, match=r"shape \(4,\); expected \(3,\)"):
        ours.predict(np.zeros(4))
    with pytest.raises(NonFiniteError, match="NaN"):
        ours.predict(np.full(3, np.nan))
    with pytest.raises(ShapeError, match=r"state has shape \(2, 4\)"):
        ours.predict(np.zeros(3), np.zeros((2, 4)))
    with pytest.raises(ShapeError, match="episode_start has 2 entries"):
        ours.predict(np.zeros(3), np.zeros((1, 4)), [True, False])
    whole = (tmp_path / "policy.safetensors").read_bytes()
    (tmp_path / "policy.safetensors").write_bytes(whole[:-1] + b"?")
    with pytest.raises(CorruptFileError, match="sha256"):
        load(tmp_path)
    content = json.loads((tmp_path / "policy.json").read_text())
    del content["runtime"]
    (tmp_path / "policy.json").write_text(json.dumps(content))
    with pytest.raises(InvalidValueError, match="saved without the arrays that run; save it again"):
        load(tmp_path)


def test_it_loads_neither_torch_nor_gymnasium(tmp_path):
    torch.manual_seed(1)
    save_policy(policy(make_cell("r2dn", 3, 2, **CELLS["r2dn gamma"][1])), tmp_path)
    script = (
        "import sys, numpy; from robust_policies.runtime import load; load(sys.argv[1]).predict(numpy.zeros(3)); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'gymnasium', 'scipy', 'stable_baselines3', 'pydantic', 'yaml', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_arrays_that_are_not_those_of_the_parameters_are_found(tmp_path):
    torch.manual_seed(1)
    made = policy(make_cell("r2dn", 3, 2, **CELLS["r2dn gamma"][1]))
    save_policy(made, tmp_path)
    assert running_arrays_agree(tmp_path, load_policy(tmp_path))
    content, tensors = made.parts()
    tensors["runtime.A"] = tensors["runtime.A"] + 0.01
    made.parts = lambda: (content, tensors)
    save_policy(made, tmp_path)
    assert not running_arrays_agree(tmp_path, load_policy(tmp_path))
