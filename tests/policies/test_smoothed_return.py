"""The certified return of a smoothed policy: below the worst there is and near it, in any environment, else refused."""

import json
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line
from scipy.special import ndtr

from robust_policies.envs import load_plant, register_tasks
from robust_policies.errors import CorruptFileError, InvalidValueError, SchemaError, ShapeError
from robust_policies.networks import Cell, make_cell
from robust_policies.policies import DeployedPolicy, SmoothedReturn, save_policy, smoothed_return
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.observations import flat_size

STEPS, SIGMA, EPISODES, HIGH = 2, 0.5, 4000, 3.0
PENDULUM = "robust_policies/Pendulum-v0"
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Adding(Cell):
    """The sum of one entry so far: what a memory can hold."""

    name = "adding"

    def __init__(self, size, entry):
        super().__init__(size, 1, 1)
        self.entry = entry
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def explicit(self):
        return None

    def step(self, explicit, input, state):
        total = state + input[..., self.entry, None]
        return total, total

    def run(self, explicit, inputs, state, starts):
        return self.unroll(explicit, inputs, state, starts)

    def options(self):
        return {}

    def zero_output_(self):
        return self


class Sum(gymnasium.Env):
    """Observations of zero; the return is 1 minus the last action, in [0, 3]; `attack` adds to what is observed.

    `attack(t, action)` gives the first entry, from the last action: the sum of what was read, noise included.
    """

    observation_space = BOX
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, attack=lambda t, action: 0.0):
        self.attack, self.spec = attack, None

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen(0.0), {}

    def seen(self, action):
        return np.array([self.attack(self.t, action), 0.0], dtype=np.float32)

    def step(self, action):
        self.t += 1
        last = self.t == STEPS
        reward = float(np.clip(1.0 - action[0], 0.0, HIGH)) if last else 0.0
        return self.seen(float(action[0])), reward, last, False, {}


def adding(space=BOX, entry=0):
    size = flat_size(space)
    actor = Actor(ScaledCell(Adding(size, entry), Scaling(size)), MeanHead(1, 1, False))
    return DeployedPolicy(actor, space, Sum.action_space)


def small(kind, size, outputs, actions, **options):
    torch.manual_seed(0)
    actor = Actor(
        ScaledCell(make_cell(kind, size, outputs, **options), Scaling(size)), MeanHead(outputs, outputs, False)
    )
    return DeployedPolicy(actor, spaces.Box(-np.inf, np.inf, (size,), np.float32), actions)


def pendulum():
    return small("mlp", 3, 1, spaces.Box(-2, 2, (1,), np.float32), hidden_sizes=[4])


def exact(size):
    """Return the mean return under the worst attack, size / root(STEPS) at every step, which shifts the sum."""
    levels = (np.arange(30_000) + 0.5) * HIGH / 30_000
    shift, deviation = size * np.sqrt(STEPS), SIGMA * np.sqrt(STEPS)
    return HIGH * ndtr((1.0 - shift - levels) / deviation).mean()


@pytest.fixture(scope="module")
def certified():
    return smoothed_return(adding(), Sum, SIGMA, [0.5, 0.1, 0.25], EPISODES, floor=0.0)


def test_what_is_certified_is_below_the_worst_attack_and_within_a_tenth_of_it(certified):
    assert certified.status == "PASS"
    assert [row.size for row in certified.rows] == [0.1, 0.25, 0.5]
    truths = [exact(row.size) for row in certified.rows]
    assert all(row.mean < truth for row, truth in zip(certified.rows, truths, strict=True))
    assert max(row.mean / truth for row, truth in zip(certified.rows, truths, strict=True)) > 0.9
    for row in certified.rows:
        # The return is 1 minus a normal number.
        median = 1.0 - row.size * np.sqrt(STEPS)
        assert median - 0.15 < row.median < median


@pytest.mark.parametrize(
    "attack",
    [
        lambda t, action: 0.5 / np.sqrt(STEPS),
        lambda t, action: 0.5 * (t == 1),
        # All at once, where the first noise has made it worthwhile; else later.
        lambda t, action: 0.5 * (t == 1 and -1.0 < action < 1.0),
    ],
)
def test_no_attacker_who_knows_what_happened_leads_below_it(certified, attack):
    found = smoothed_return(adding(), lambda: Sum(attack), SIGMA, [0.0], 1000, floor=0.0, seed=5)
    assert found.smoothed > certified.rows[-1].mean - 3 * found.smoothed_error
    assert found.smoothed > exact(0.5) - 3 * found.smoothed_error


def test_without_a_floor_quantiles_alone_are_certified(certified):
    found = smoothed_return(adding(), Sum, SIGMA, [0.25, 5.0], 500)
    assert (found.floor, found.floor_from) == (None, "")
    assert found.rows[0].mean is None
    assert found.rows[0].median < certified.rows[1].median
    assert "nothing is said of its mean" in found.claim
    assert found.rows[1].said == ""
    nothing = smoothed_return(adding(), Sum, SIGMA, [5.0], 500)
    assert nothing.status == "NOT_CERTIFIED"
    assert nothing.claim.startswith("Nothing is proven")


def test_it_is_written_and_read_and_says_whose_floor_it_is(certified, tmp_path):
    path = certified.to_json(tmp_path / "smoothed_return.json")
    assert SmoothedReturn.from_json(path) == certified
    assert "which was given and is not checked" in certified.claim
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": 2}))
    with pytest.raises(SchemaError):
        SmoothedReturn.from_json(path)
    path.write_text(json.dumps({**content, "rows": [{"size": 1}]}))
    with pytest.raises(CorruptFileError, match="certify --smooth"):
        SmoothedReturn.from_json(path)


def test_the_floor_of_a_task_is_that_of_its_rewards():
    options = {"env_kwargs": {"max_episode_steps": 5}, "episodes": 100}
    found = smoothed_return(pendulum(), PENDULUM, 0.2, [0.1], **options)
    assert found.steps == 5
    assert found.floor == pytest.approx(-5 * (np.pi**2 + 0.1 * 64 + 0.001 * 4), rel=1e-4)
    assert found.rows[0].mean < found.smoothed
    assert found == smoothed_return(pendulum(), PENDULUM, 0.2, [0.1], **options)
    assert found != smoothed_return(pendulum(), PENDULUM, 0.2, [0.1], **options, seed=1)
    wrapped = smoothed_return(pendulum(), PENDULUM, 0.2, [0.1], **options, perturbations=[{"ObservationNoise": 0.1}])
    assert wrapped.floor is None
    assert "inside ObservationNoise" in wrapped.claim


@pytest.mark.parametrize("name", ["Pendulum", "CartPole", "CartPoleSwingUp", "Quadrotor", "QuadrotorPlanar"])
def test_no_reward_is_below_what_a_plant_states(name):
    register_tasks()
    env = gymnasium.make_vec(f"robust_policies/{name}-v0", num_envs=64)
    env.reset(seed=0)
    env.action_space.seed(0)
    plant = env.unwrapped.plant
    least = min(float(env.step(env.action_space.sample())[1].min()) for _ in range(30))
    assert least >= plant.least_reward
    env.close()


def test_the_floor_of_the_pendulum_is_reached():
    plant = load_plant("pendulum")
    state, action = torch.tensor([[-np.pi, 8.0]]), torch.tensor([[2.0]])
    assert float(plant.reward(state, action, state, plant.nominal())) == pytest.approx(plant.least_reward, rel=1e-4)
    assert load_plant("cartpole_continuous").least_reward is None


def test_choices_of_a_policy_with_a_memory_in_an_environment_of_another_package():
    policy = small("lstm", 4, 2, spaces.Discrete(2), state_size=6)
    found = smoothed_return(policy, "CartPole-v1", 0.1, [0.05], 100, 0.9, floor=0.0, max_steps=6)
    assert (found.nominal, found.smoothed, found.steps) == (6.0, 6.0, 6)
    assert 5.0 < found.rows[0].mean < 6.0


class Mixed(gymnasium.Env):
    """Two measured entries and a bit that is set: 1 for an action of exactly 1; half of the episodes end in NaN."""

    def __init__(self, space):
        self.observation_space, self.action_space, self.spec = space, Sum.action_space, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad = self.np_random.random() < 0.5
        return self.seen(), {}

    def seen(self):
        return {"level": np.zeros(2, dtype=np.float32), "on": np.ones(1, dtype=np.int8)}

    def step(self, action):
        return self.seen(), np.nan if self.bad else float(action[0] == 1.0), True, False, {}


def test_episodes_that_fail_count_as_the_floor_and_choices_get_no_noise():
    space = spaces.Dict(level=BOX, on=spaces.MultiBinary(1))
    found = smoothed_return(adding(space, 2), lambda: Mixed(space), 0.1, [0.05], 200, floor=0.0)
    assert 60 < found.failed < 140
    assert found.smoothed == 1.0
    assert found.rows[0].mean < 0.6
    assert found.rows[0].nine_of_ten is None


def test_what_makes_no_sense_is_refused():
    for space in (spaces.Discrete(3), spaces.MultiBinary(3)):
        with pytest.raises(InvalidValueError, match="choices alone"):
            smoothed_return(adding(space), lambda space=space: Mixed(space), 0.1, [0.1], 100)
    for wrong, said in (
        ({"sigma": 0.0}, "sigma"),
        ({"sizes": [-0.1]}, "size"),
        ({"sizes": []}, "sizes is empty"),
        ({"sizes": [np.nan]}, "size"),
        ({"episodes": 50}, "episodes"),
        ({"confidence": 1.0}, "confidence"),
        ({"floor": 2.9}, "below the floor 2.9"),
        ({"policy": "policy"}, "deployed"),
    ):
        given = {"policy": adding(), "env_id": Sum, "sigma": SIGMA, "sizes": [0.1], "episodes": 100} | wrong
        with pytest.raises(InvalidValueError, match=said):
            smoothed_return(**given)
    with pytest.raises(ShapeError):
        smoothed_return(adding(), PENDULUM, 0.1, [0.1], 100)


def test_certify_smooth_writes_what_it_says(tmp_path):
    save_policy(pendulum(), tmp_path, task=PENDULUM)
    done = answer(
        "certify", tmp_path, "--smooth", "0.2", "--episodes", "100", "--sizes", "0,0.1", "--confidence", "0.9"
    )
    assert done.returncode == 0, done.stderr
    found = SmoothedReturn.from_json(tmp_path / "smoothed_return.json")
    assert found.claim in done.stdout
    assert (found.sigma, found.confidence, found.episodes, len(found.rows)) == (0.2, 0.9, 100, 2)
    assert f"without the noise: {found.nominal:.4g}" in done.stdout
    for stray, said in (
        (("--confidence", "0.9"), "--confidence was given without --smooth"),
        (("--smooth", "0.2", "--norm", "total_l2"), "--norm was given without --return"),
        (("--smooth", "0.2", "--return"), "--smooth was given with --return"),
        (("--return", "--floor", "0"), "--floor was given without --smooth"),
        (("--smooth", "0"), "sigma"),
        (("--check", "--weights", "1"), "certificate.json"),
    ):
        assert said in one_line(answer("certify", tmp_path, *stray))


@pytest.mark.soak
def test_ten_thousand_pendulums_take_less_than_a_minute_of_a_processor():
    begin = time.process_time()
    found = smoothed_return(pendulum(), PENDULUM, 0.2)
    assert found.episodes == 10_000
    assert time.process_time() - begin < 60
