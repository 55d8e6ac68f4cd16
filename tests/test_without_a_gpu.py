"""What runs on a CUDA device, run where there is none: no device is mixed, numbers are the CPU's, waits are known."""

import copy
from collections import Counter
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from cuda_without_one import Card, cuda_without_one, moved
from gymnasium import spaces
from kinds import KINDS
from torch._subclasses.fake_tensor import FakeTensorMode

from robust_policies import checks
from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.envs.mujoco import warp_backend
from robust_policies.envs.perturb import perturb
from robust_policies.envs.task import load_plant
from robust_policies.errors import DeviceError
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.networks import compiled, known_cells, make_cell, perceptron
from robust_policies.networks.linalg import inverted, lower_root, solved
from robust_policies.policies import DeployedPolicy, RecurrentCellPolicy, smoothed_return
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.train import TensorRecurrentPPO
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.ppo import fused, losses
from robust_policies.train.ppo.policy import RolloutPolicy
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.sections import TaskSection

ENVS, LIMIT = 5, 4
CELLS = {
    "r2dn": {"state_size": 4, "features": 3, "hidden_sizes": (5, 4), "gamma": 3.0},
    "ren": {"state_size": 4, "features": 5, "gamma": 3.0},
    "nemon": {"state_size": 4, "features": 5, "gamma": 3.0},
    "l2ru": {"state_size": 4, "features": 5, "gamma": 3.0},
    "convex": {"state_size": 4, "gamma": 3.0},
    "lipschitz_rnn": {"state_size": 4},
    "lstm": {"state_size": 4},
    "gru": {"state_size": 4},
    "mlp": {"hidden_sizes": (5,)},
    "lbdn": {"hidden_sizes": (5, 4), "gamma": 3.0},
}
# cuDNN's networks are cut where episodes begin, and a spectral norm is an iteration: once in a run, never in a step.
CELL_WAITS = {
    "lstm": {"networks/baselines.py:_hidden nonzero": 1, "networks/baselines.py:_hidden tolist": 1},
    "gru": {"networks/baselines.py:_hidden nonzero": 1, "networks/baselines.py:_hidden tolist": 1},
    "convex": {"networks/convex.py:explicit _linalg_svd": 1},
}
# An update asks once, for all minibatches, where episodes begin.
CUT_WAITS = {"train/ppo/buffer.py:find_begins nonzero": 1, "train/ppo/buffer.py:find_begins tolist": 1}
# Of PPO, once an update each: the rollout looked at, its last episodes, the losses looked at, the log.
UPDATE_WAITS = {
    "train/ppo/algorithm.py:_log tolist": 1,
    "train/ppo/episodes.py:ended nonzero": 1,
    "train/ppo/episodes.py:ended tolist": 2,
    "train/run/guard.py:in_rollout _local_scalar_dense": 1,
    "train/run/guard.py:in_update _local_scalar_dense": 1,
}
TORCH_KINDS = [kind for kind in KINDS if kind != "Hopper"]
PERTURBATIONS = [
    {"ObservationNoise": 0.1},
    {"ObservationBias": {"size": 0.1, "kind": "uniform"}},
    {"ObservationDropout": 0.3},
    {"ObservationDelay": 2},
    {"ObservationQuantize": 0.1},
    {"ActionNoise": 0.1},
    {"ActionDelay": 1},
    {"ActionDropout": 0.3},
    {"StickyAction": 0.3},
    {"ForceDisturbance": {"size": 0.2, "kind": "sine", "start": [0.0, 0.1]}},
    {"DynamicsShift": {"parameter": "mass", "factor": [0.8, 1.2]}},
]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def build_cell(name, inputs=3, outputs=2):
    torch.manual_seed(0)
    return make_cell(name, inputs, outputs, **CELLS[name])


def there(tensor):
    """Return the numbers of a tensor that has to be on the card."""
    assert tensor.is_cuda
    return tensor.detach().held


# Not copies and indices, which a card allows and fake tensors do not.
MIXED = {
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a @ b,
    "number of the CPU": lambda a, b: a * b[0, 0],
    "joined": lambda a, b: torch.cat((a, b)),
    "stacked numbers": lambda a, b: torch.stack((a[0, 0], b[0, 0])),
    "chosen": lambda a, b: torch.where(a > 0, a, b),
    "in place": lambda a, b: a.clone().add_(b),
    "the other in place": lambda a, b: b.clone().add_(a),
    "rows": lambda a, b: a.index_select(0, torch.zeros(2, dtype=torch.int64)),
    "solve": lambda a, b: torch.linalg.solve_triangular(a, b, upper=False),
}


@pytest.mark.parametrize("name", MIXED)
def test_devices_are_mixed_where_pytorchs_own_fake_tensors_say_so(name):
    def refuses(a, b):
        try:
            MIXED[name](a, b)
        except (RuntimeError, NotImplementedError):
            return True
        return False

    with FakeTensorMode(allow_non_fake_inputs=True):
        expected = refuses(torch.empty(3, 3, device="cuda"), torch.empty(3, 3))
    with cuda_without_one():
        assert refuses(moved(torch.ones(3, 3)), torch.ones(3, 3)) == expected


def test_what_a_card_refuses_is_refused_and_what_it_waits_for_is_noted():
    with cuda_without_one() as waits:
        tensor = torch.ones(3, device="cuda")
        assert not waits.taken() and tensor.device.type == "cuda" and (2 * tensor).is_cuda
        with pytest.raises(TypeError, match="cuda"):
            tensor.numpy()
        assert bool((tensor > 0).all()) and tensor.cpu().numpy().sum() == 3
        assert sum(waits.taken().values()) == 2
        tensor[tensor > 0], tensor.nonzero(), torch.as_tensor(np.ones(2), device="cuda")
        assert sum(waits.taken().values()) == 3


def test_every_cell_has_a_case():
    assert set(CELLS) <= set(known_cells())
    assert {name for name, cell in known_cells().items() if cell.__module__.startswith("robust_policies")} == set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_and_its_own_backward_give_what_they_give_on_the_cpu(name):
    cell = build_cell(name)
    numbers = [torch.randn(6, 5, 3), torch.randn(5, cell.state_size)]
    starts = torch.rand(6, 5) < 0.3

    def gradients(cell, inputs, state, starts):
        outputs, final = cell(inputs.requires_grad_(), state.requires_grad_(), starts)
        (outputs.square().sum() + final.sum()).backward()
        return [outputs, final, inputs.grad, *[p.grad for p in cell.parameters()]]

    expected = gradients(copy.deepcopy(cell), *(one.clone() for one in numbers), starts)
    with cuda_without_one() as waits:
        card = copy.deepcopy(cell).to("cuda")
        given = [moved(one) for one in numbers]
        card(*given)  # constants are carried once
        waits.taken()
        found = gradients(card, *given, moved(starts))
        assert waits.taken() == CELL_WAITS.get(name, {})
    for one, other in zip(found, expected, strict=True):
        if one is None or not one.numel():
            assert other is None or not other.numel()
            continue
        assert torch.allclose(there(one), other, rtol=1e-4, atol=1e-4 * max(1.0, float(other.detach().abs().max())))


@pytest.mark.parametrize("name", CELLS)
def test_a_step_with_fixed_arrays_waits_for_nothing(name):
    cell = build_cell(name)
    expected = cell.fixed_step(cell.explicit())(torch.ones(5, 3), cell.initial_state(5))
    with cuda_without_one() as waits, torch.no_grad():
        card = copy.deepcopy(cell).to("cuda")
        step, inputs, state = card.fixed_step(card.explicit()), torch.ones(5, 3, device="cuda"), card.initial_state(5)
        waits.taken()
        found = step(inputs, state)[:2]
        assert not waits.taken()
    for one, other in zip(found, expected, strict=False):
        assert torch.allclose(there(one), other, atol=1e-5)


def played(device, name, mode, waits=None, *, randomize=False, perturbations=(), steps=10):
    """Return all that a vectorized environment gave, and what its steps waited for."""
    env = gymnasium.make_vec(
        f"robust_policies/{name}-v0", num_envs=ENVS, device=device, autoreset_mode=mode, max_episode_steps=LIMIT,
        randomize=randomize,
    )  # fmt: skip
    env = perturb(env, list(perturbations))
    env.unwrapped.trusts_actions = True
    generator, counted = torch.Generator().manual_seed(0), Counter()
    given = [env.reset(seed=3)[0]]
    for step in range(steps):
        if isinstance(env.single_action_space, spaces.Discrete):
            action = torch.randint(0, 2, (ENVS,), generator=generator)
        else:
            action = torch.randn(ENVS, *env.single_action_space.shape, generator=generator)
        action = action.to(device)
        if waits is not None:
            waits.taken()
        observation, reward, terminated, truncated, info = env.step(action)
        # What a first step carries to the device stays there.
        if waits is not None and step:
            counted.update(waits.taken())
        given += [observation, reward, terminated, truncated]
        done = terminated | truncated
        if mode == "SameStep" and bool(done.any()):
            given.append(info["final_obs"][done])
        if mode == "Disabled" and bool(done.any()):
            given.append(env.reset(options={"reset_mask": done})[0])
    env.close()
    return given, dict(counted)


@pytest.mark.parametrize(
    ("mode", "randomize"), [("SameStep", False), ("SameStep", True), ("NextStep", True), ("Disabled", False)]
)
@pytest.mark.parametrize("name", TORCH_KINDS)
def test_a_task_does_what_it_does_on_the_cpu_bit_for_bit(name, mode, randomize):
    expected, _ = played("cpu", name, mode, randomize=randomize)
    with cuda_without_one() as waits:
        found, counted = played("cuda", name, mode, waits, randomize=randomize)
        assert all(torch.equal(there(one), other) for one, other in zip(found, expected, strict=True))
    # Elsewhere it is asked which episodes ended, where one may have, and which time limit is next.
    asked = set() if mode == "SameStep" else {"envs/arguments.py:marked nonzero"}
    if mode != "SameStep" and not load_plant(name_of(name)).terminates:
        asked.add("envs/vector.py:_count_running _local_scalar_dense")
    assert set(counted) == asked and max(counted.values(), default=0) < 10


def name_of(kind):
    return gymnasium.spec(f"robust_policies/{kind}-v0").kwargs["task"]


def test_time_limits_spread_over_the_steps_are_foreseen():
    def ends(device):
        env = TorchVectorEnv("pendulum", ENVS, device=device, max_episode_steps=LIMIT)
        env.reset(seed=0)
        env.elapsed = torch.tensor([0, 1, 1, 3, 0])
        env.trusts_actions = True
        return env, torch.zeros(ENVS, 1, device=device)

    env, action = ends("cpu")
    expected = torch.stack([env.step(action)[3] for _ in range(9)])
    with cuda_without_one() as waits:
        env, action = ends("cuda")
        waits.taken()
        steps = [env.step(action) for _ in range(9)]
        assert not waits.taken()
        assert torch.equal(there(torch.stack([step[3] for step in steps])), expected)
        assert ["_final_obs" in step[4] for step in steps] == expected.any(1).tolist()


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_perturbed_tasks_too(mode):
    expected, _ = played("cpu", "Pendulum", mode, perturbations=PERTURBATIONS)
    with cuda_without_one() as waits:
        found, counted = played("cuda", "Pendulum", mode, waits, perturbations=PERTURBATIONS)
        assert all(torch.allclose(there(one), other, atol=1e-6) for one, other in zip(found, expected, strict=True))
    # They ask which episodes begin, once a step at most each.
    assert max(counted.values(), default=0) <= 10 * len(PERTURBATIONS)


def ppo(device, task="pendulum", cell="r2dn", critic="mlp", **options):
    env = SB3VecEnv(TorchVectorEnv(task, 6, max_episode_steps=7, device=device))
    env.seed(3)
    kwargs = {"cell": cell, "cell_kwargs": CELLS[cell], "critic": critic, "zero_init": False}
    settings = {"n_steps": 20, "batch_size": 60, "n_epochs": 2, "gamma": 0.95, "learning_rate": 1e-3, "seed": 0}
    return TensorRecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=kwargs, device=device, **(settings | options))


@pytest.mark.parametrize(
    ("cell", "critic", "options"),
    [
        ("r2dn", "mlp", {}),
        ("ren", "own", {"normalize_reward": True, "n_epochs": 1}),
        ("lstm", "shared", {"normalize_observation": True, "n_epochs": 3}),
        ("l2ru", "mlp", {"clip_range_vf": 0.2}),
    ],
)
def test_ppo_learns_the_cpus_weights_and_waits_a_fixed_few_times_an_update(cell, critic, options):
    expected = ppo("cpu", cell=cell, critic=critic, **options).learn(240).policy.state_dict()
    with cuda_without_one() as waits:
        model = ppo("cuda", cell=cell, critic=critic, **options)
        assert model.why_numpy is None
        model.learn(120)
        waits.taken()
        model.learn(120, reset_num_timesteps=False)
        assert waits.taken() == UPDATE_WAITS | (CUT_WAITS if cell == "lstm" else {})
        for name, value in model.policy.state_dict().items():
            assert torch.allclose(there(value), expected[name], atol=2e-6)


def test_choices_are_drawn_and_judged_without_a_wait():
    with cuda_without_one() as waits:
        model = ppo("cuda", "cartpole", "r2dn", "mlp", n_epochs=1)
        model.learn(120)
        waits.taken()
        model.learn(120, reset_num_timesteps=False)
        assert waits.taken() == UPDATE_WAITS
        batch = next(iter(next(model.rollout_buffer.minibatches(1))))[0]
        terms = losses.Terms(0.2, None, 0.5, 0.01)
        found = model._tensors.loss(batch, model._tensors.arrays(), terms)
        weights = {name: there(value) for name, value in model.policy.state_dict().items()}
        batch = type(batch)(*(there(one) for one in batch))
    here = ppo("cpu", "cartpole", "r2dn", "mlp")
    here.policy.load_state_dict(weights)
    expected = here._tensors.loss(batch, here._tensors.arrays(), terms)
    for one, other in zip((found[0], *found[1], found[2]), (expected[0], *expected[1], expected[2]), strict=True):
        assert torch.allclose(there(one), other, atol=1e-5)


def test_choices_have_their_probabilities(monkeypatch):
    with cuda_without_one(), torch.no_grad():
        model = ppo("cuda", "cartpole", "r2dn", "mlp")
        acting = model._tensors
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            logits = torch.tensor([[0.0, 1.0]]).expand(20_000, 2)
            rollout = RolloutPolicy(acting, acting.initial_states(20_000), 1)
            monkeypatch.setattr(type(acting.policy.action_net), "forward", lambda self, outputs: moved(logits))
            drawn = there(rollout.act(torch.zeros(20_000, 4, device="cuda"), 0)).float().mean()
    chance = float(torch.sigmoid(torch.tensor(1.0)))
    # Five deviations of a share of 20,000.
    assert abs(float(drawn) - chance) < 5 * (chance * (1 - chance) / 20_000) ** 0.5


def test_kernels_of_the_cpu_are_left_alone(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a kernel of the CPU was asked for")

    for module, name in ((compiled, "_works"), (perceptron, "_kernels"), (losses, "_kernels"), (fused, "_kernels")):
        monkeypatch.setattr(module, name, never)
    with cuda_without_one():
        model = ppo("cuda", n_steps=60, batch_size=None, n_epochs=1)
        model.learn(360)
        assert fused.fused(model._tensors, model.rollout_buffer, 6) is None
        # More steps and rows than the kernels ask for.
        cell = build_cell("r2dn").to("cuda")
        cell(torch.zeros(2, 2000, 3, device="cuda"))[0].sum().backward()


def actor_of(plant, scale=None):
    cell = build_cell("r2dn", plant.observation_size, plant.action_size)
    head = MeanHead(plant.action_size, plant.action_size, False, scale)
    return Actor(ScaledCell(cell, Scaling(plant.observation_size)), head)


@pytest.mark.parametrize("task", ["pendulum", "quadrotor_planar", "linear"])
def test_analytic_policy_gradients_wait_outside_their_steps(task):
    plant = load_plant(task)

    def counts(horizon):
        settings = ApgSection(total_steps=10**6, value_tail=True, horizon=horizon)
        algorithm = AnalyticPolicyGradient(plant, actor_of(plant).to("cuda"), settings, 6, max_episode_steps=600)
        algorithm.update(1.0)  # constants are carried once
        waits.taken()
        scalars = algorithm.update(1.0)
        assert all(np.isfinite(value) for value in scalars.values())
        assert any(p.grad is not None for p in algorithm.actor.parameters())
        return waits.taken()

    with cuda_without_one() as waits:
        few, many = counts(4), counts(8)
    if plant.terminates:
        # Whether an episode ended is asked in every step.
        place = "train/apg/algorithm.py:rollout _local_scalar_dense"
        assert (few.pop(place), many.pop(place)) == (5, 9)
    assert few == many and max(few.values()) <= 4


def test_imitation_carries_its_choices_at_once():
    stage = dict(id="robust_policies/DoubleIntegrator-v0", num_envs=4, kwargs={"max_episode_steps": 20})

    class Teacher:
        def act(self, observation, taught, starts):
            return torch.zeros(len(observation), 1, device=observation.device), lambda action: action

    with cuda_without_one() as waits:
        here = Stage(TaskSection(**stage), 4, "cuda")
        plant = load_plant(name_of("DoubleIntegrator"))
        waits.taken()
        found = here.play(0, 12, Teacher(), actor_of(plant).to("cuda"), 0.5)
        counted = waits.taken()
        here.close()
        assert there(found.actions).shape == (12, 4, 1)
    assert counted.pop("envs/arguments.py:_continuous _local_scalar_dense") == 12
    assert not any(place.startswith("train/imitation/rollout.py") and count > 1 for place, count in counted.items())


def policy_of(seed=0):
    torch.manual_seed(seed)
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    actor = actor_of(load_plant("pendulum"), 1.0)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))


OPTIONS = {
    "mad_pgd": {"steps": 2},
    "sequence_pgd": {"steps": 2, "window": 6, "replan": 3},
    "closed_loop_pgd": {"steps": 2, "window": 6, "replan": 3},
}


@pytest.mark.parametrize("attack", OPTIONS)
def test_attacks_search_on_the_card_within_their_budget(attack):
    with cuda_without_one():
        found = run_episodes(
            policy_of().to("cuda"), "robust_policies/Pendulum-v0", attack, [0.3], 2, 3,
            norm="per_step_l2", options=OPTIONS[attack], max_steps=8, record=2,
        )  # fmt: skip
    shift = found.recorded["perturbed"].astype(np.float64) - found.recorded["observations"].astype(np.float64)
    assert 0 < np.linalg.norm(shift, axis=-1).max() <= 0.3 * (1 + 1e-6) and not found.failed.any()


def test_smoothing_gives_the_cpus_returns():
    options = {"sigma": 0.1, "sizes": [0.05], "episodes": 100, "confidence": 0.9, "max_steps": 6}
    here = smoothed_return(policy_of(), "robust_policies/Pendulum-v0", **options)
    with cuda_without_one():
        card = smoothed_return(policy_of().to("cuda"), "robust_policies/Pendulum-v0", **options)
    assert card.smoothed == pytest.approx(here.smoothed, abs=1e-4)
    assert card.nominal == pytest.approx(here.nominal, abs=1e-4)


def test_a_singular_matrix_gives_nan_on_the_card_where_the_cpu_raises():
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    for function in (inverted, lambda a: solved(a, a), lambda a: lower_root(-a)):
        with pytest.raises(torch.linalg.LinAlgError):
            function(singular)
        with cuda_without_one() as waits:
            assert not torch.isfinite(there(function(moved(singular)))).any() and "elsewhere" not in str(waits.places)


def test_no_device_and_warp_without_one_are_said_in_a_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"PyTorch .* sees 0 CUDA device\(s\)") as caught:
        checks.device("cuda")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("torch.version.cuda", "12.8")
    with pytest.raises(DeviceError, match=r"a driver for CUDA 12\.8 is needed"):
        checks.device("cuda")
    monkeypatch.undo()
    # Of a build for the CPU, whose kernels need not be loaded for it.
    warp = SimpleNamespace(init=lambda: None, get_cuda_device_count=lambda: 0, __version__="1.0")
    monkeypatch.setattr(warp_backend, "_load", lambda: (warp, None))
    with cuda_without_one(), pytest.raises(DeviceError, match=r"warp 1\.0 sees 0 CUDA device\(s\)") as caught:
        TorchVectorEnv("hopper", 2, device="cuda")
    assert "\n" not in str(caught.value)


def test_an_environment_elsewhere_is_named():
    with cuda_without_one(), pytest.warns(UserWarning, match="computes on cpu and the policy on cuda"):
        env = SB3VecEnv(TorchVectorEnv("pendulum", 6, max_episode_steps=7))
        kwargs = {"cell": "lstm", "cell_kwargs": CELLS["lstm"]}
        TensorRecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=kwargs, device="cuda", n_steps=20, batch_size=60)


def test_a_tensor_on_the_card_is_one():
    with cuda_without_one():
        assert isinstance(torch.zeros(2, device="cuda"), Card)
