"""Tasks on a CUDA device where there is none: bit for bit what they do on the CPU, and no wait within a step."""

from collections import Counter

import gymnasium
import pytest
import torch
from card_cases import name_of, there
from cuda_without_one import cuda_without_one
from gymnasium import spaces
from kinds import KINDS

from robust_policies.envs import TorchVectorEnv
from robust_policies.envs.perturb import NAMES, perturb
from robust_policies.envs.task import PLANTS, load_plant

ENVS, LIMIT = 5, 4
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
        asked.add("envs/clock.py:look _local_scalar_dense")
    assert set(counted) == asked and max(counted.values(), default=0) < 10


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


def perturbations_of(name):
    """Return those perturbations that an environment takes; what is shifted is its first parameter."""
    parameter, found = next(iter(load_plant(name_of(name)).nominal())), []
    env = gymnasium.make_vec(f"robust_policies/{name}-v0", num_envs=2)
    for one in PERTURBATIONS:
        if "DynamicsShift" in one:
            one = {"DynamicsShift": {**one["DynamicsShift"], "parameter": parameter}}
        if "ActionNoise" not in one or isinstance(env.single_action_space, spaces.Box):
            found.append(one)
    env.close()
    return found


def test_every_plant_and_every_perturbation_has_a_case():
    assert {load_plant(name_of(kind)).kind for kind in KINDS} == set(PLANTS)
    assert {name for one in PERTURBATIONS for name in one} == set(NAMES)


# In SAME_STEP nobody knows on the host whether an episode ended; the other modes once with and once without failures.
PERTURBED = [
    pytest.param(name, mode, marks=[] if mode == "SameStep" or name in ("Pendulum", "CartPole") else pytest.mark.soak)
    for name in TORCH_KINDS
    for mode in ("SameStep", "NextStep", "Disabled")
]


@pytest.mark.parametrize(("name", "mode"), PERTURBED)
def test_perturbed_tasks_too(name, mode):
    options = {"perturbations": perturbations_of(name), "steps": 6}
    expected, _ = played("cpu", name, mode, **options)
    with cuda_without_one() as waits:
        found, counted = played("cuda", name, mode, waits, **options)
        assert all(torch.allclose(there(one), other, atol=1e-6) for one, other in zip(found, expected, strict=True))
    # They ask which episodes begin, once a step at most each.
    assert max(counted.values(), default=0) <= 10 * len(PERTURBATIONS)
