"""A single environment steps by a program of floats: bit for bit what the vectorized one does, or it is torch's."""

import copy
import pickle
import textwrap

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from test_own_tasks import CLASS, TANK

from robust_policies.envs import ENV_IDS, TaskEnv, TorchVectorEnv, load_plant
from robust_policies.envs.straight_line import StraightLine
from robust_policies.errors import InvalidValueError

TORCH_IDS = [one for one in ENV_IDS if gymnasium.spec(one).kwargs["task"] not in {
    "inverted_pendulum", "inverted_double_pendulum", "reacher", "hopper", "hopper_no_velocity",
    "half_cheetah", "walker2d"
}]  # fmt: skip


class Pair:
    """A single environment beside the vectorized one of its task, both with the same seeds, actions and settings."""

    def __init__(self, task, **options):
        self.env = TaskEnv(task, **options)
        self.other = TorchVectorEnv(task, 1, autoreset_mode=AutoresetMode.DISABLED, **options)
        self.rng = np.random.default_rng(5)

    def reset(self, seed=None, options=None):
        mine = self.env.reset(seed=seed, options=options)[0]
        self.other.reset(seed=None if seed is None else [seed])
        if options:
            self.other.reset(options=options)
        self.same(mine, self.other._observation[0])

    def same(self, observation, expected):
        assert observation.dtype == np.float32
        assert observation.tobytes() == expected.numpy().tobytes()
        assert self.env.state.tobytes() == self.other.state[0].numpy().tobytes()
        assert self.env.batch.elapsed == self.other.elapsed

    def action(self):
        """A random action, half of the time beyond the limits."""
        space = self.env.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return self.rng.integers(space.n)
        middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
        return (middle + 2.0 * half * self.rng.uniform(-1.0, 1.0, space.shape)).astype(self.rng.choice(["f4", "f8"]))

    def step(self, action=None):
        action = self.action() if action is None else action
        observation, reward, terminated, truncated, info = self.env.step(action)
        expected = self.other.step(np.asarray(action)[None])
        self.other._ended = None
        self.same(observation, expected[0][0])
        assert type(reward) is float and repr(reward) == repr(float(self.other._reward[0]))
        assert (terminated, truncated) == (bool(expected[2][0]), bool(expected[3][0])) and info == {}
        return terminated or truncated

    def drawn_alike(self):
        mine = self.env.np_random.bit_generator.state["state"]
        assert mine == self.other.np_random[0].bit_generator.state["state"]
        assert mine == self.env.batch.np_random[0].bit_generator.state["state"]

    @property
    def by_program(self):
        return bool(self.env._step_program._bound) and not self.env._step_program.given_up


@pytest.mark.parametrize("env_id", TORCH_IDS)
def test_whole_episodes_are_those_of_the_vectorized_environment(env_id):
    task = gymnasium.spec(env_id).kwargs["task"]
    pair = Pair(task, randomize=bool(load_plant(task).task.randomize))
    channels = len(pair.env.plant.disturbance_names)
    pair.reset(seed=3)
    for episode in range(2):
        for step in range(pair.env.max_episode_steps):
            if step % 40 == 20 and channels and episode:
                push = 0.1 * pair.rng.normal(size=channels)
                pair.env.disturbance, pair.other.disturbance = push, push[None]
            if pair.step() and step > 5:
                break
        pair.env.disturbance = pair.other.disturbance = None
        pair.reset()
    for _ in range(20):
        pair.step()
    pair.drawn_alike()
    assert pair.by_program


@pytest.mark.parametrize("env_id", ["robust_policies/CartPole-v0", "robust_policies/Linear-v0"])
def test_starts_are_those_of_the_vectorized_environment(env_id):
    pair = Pair(gymnasium.spec(env_id).kwargs["task"])
    pair.reset(seed=3)
    for seed in (None, None, None, None, 8, None, 9, None):
        pair.reset(seed=seed)
        pair.step()
    pair.drawn_alike()
    assert pair.env._start_program._bound and not pair.env._start_program.given_up


@pytest.mark.parametrize("task", ["pendulum", "maglev", "aircraft_pitch"])
def test_a_changed_parameter_is_used_without_another_trace(task):
    pair = Pair(task)
    pair.reset(seed=0)
    for _ in range(20):
        pair.step()
    traces, name = pair.env._step_program._traces_left, next(iter(pair.env.params))
    for factor in (1.1, 0.9, 1.0):
        pair.env.params[name] = pair.other.params[name] = factor * pair.env.params.nominal[name]
        for _ in range(5):
            pair.step()
    assert pair.by_program and pair.env._step_program._traces_left == traces
    # A value for each environment is another layout, and may be of another number type in the plant.
    pair.env.params[name] = pair.other.params[name] = 1.05 * pair.env.params.nominal[name][None]
    for _ in range(5):
        pair.step()
    assert pair.by_program


def test_what_is_assigned_is_seen():
    pair = Pair("pendulum", max_episode_steps=30)
    pair.reset(seed=0)
    for _ in range(20):
        pair.step()
    pair.env.state, pair.other._state[:] = [0.3, -0.2], torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    pair.env.batch.elapsed = pair.other.elapsed = torch.tensor([25])
    assert [pair.step() for _ in range(6)] == [False, False, False, False, True, True]
    assert pair.env.batch.some_ended
    for plant in (pair.env.plant, pair.other.plant):
        plant.time_step, plant.action_high = 0.1, plant.action_high.copy()
    for _ in range(3):
        pair.step()
    assert pair.by_program


def test_numbers_beyond_all_bounds_are_left_to_torch(own_task):
    def explosive(content):
        content["parameters"]["A"] = [[1e30, 0.0], [1.0, 1.0]]
        content["noise"], content["continuous"] = {}, False

    pair = Pair(own_task("linear", explosive))
    pair.reset(seed=0)
    with np.errstate(all="ignore"):
        for _ in range(20):
            pair.step()
    assert not np.isfinite(pair.env.state).all()
    assert not pair.env._step_program.given_up
    pair.reset()
    pair.step()
    assert pair.by_program and np.isfinite(pair.env.state).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("task", ["pendulum", "linear"])
def test_copies_in_the_middle_go_on_alike(task, copied):
    env = TaskEnv(task)
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.ones(1, np.float32))
    other = copied(env)
    for _ in range(20):
        first, second = env.step(np.ones(1, np.float32)), other.step(np.ones(1, np.float32))
        assert first[0].tobytes() == second[0].tobytes() and first[1:] == second[1:]
    assert env.state.tobytes() == other.state.tobytes()
    assert other._step_program._bound and other._step_program._bound is not env._step_program._bound
    env.step(np.ones(1, np.float32))
    assert env.state.tobytes() != other.state.tobytes()


def test_another_kind_of_generator_is_refused_as_before():
    env = TaskEnv("linear")
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.zeros(1, np.float32))
    state = env.state
    env.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(InvalidValueError, match="MT19937"):
        env.step(np.zeros(1, np.float32))
    assert np.array_equal(env.state, state) and env.batch.plant is env.plant


def test_pictures_show_where_the_program_went():
    pictures = []
    for given_up in (False, True):
        env = TaskEnv("pendulum", render_mode="rgb_array")
        env._step_program.given_up = given_up
        env.reset(seed=0)
        for _ in range(20):
            env.step(np.ones(1, np.float32))
        pictures.append(env.render())
    assert np.array_equal(*pictures)


ADVANCE = TANK[TANK.index("    def advance") : TANK.index("    def observe")]


def own_plant(folder, body, extra=""):
    """Return the folder of the tank's task with another `advance`."""
    code = "    def advance(self, state, action, params, noise=None, disturbance=None):\n"
    code += textwrap.indent(textwrap.dedent(body).strip(), " " * 8) + "\n\n"
    (folder / "tank.py").write_text(extra + TANK.replace(ADVANCE, code))
    (folder / "task.yaml").write_text(CLASS)
    return folder


UNTRACEABLE = {
    "looks": """
        flow = action[..., 0].clamp(0.0, 1.0)
        if bool((state < 0.4).all()):
            flow = flow + 0.1
        return (0.9 * state[..., 0] + flow / params["area"]).unsqueeze(-1)""",
    "numpy": """
        level = 0.9 * state.numpy() + action.clamp(0.0, 1.0).numpy()
        return torch.as_tensor(level)""",
    "in place": """
        following = 0.9 * state
        following[..., 0] += action[..., 0].clamp(0.0, 1.0) / params["area"]
        return following""",
    "counts": """
        self.calls = getattr(self, "calls", 0) + 1
        return 0.9 * state + 0.1 * action.clamp(0.0, 1.0)""",
}


@pytest.mark.parametrize("body", UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_a_plant_that_cannot_be_traced_is_left_to_torch(tmp_path, body):
    pair = Pair(own_plant(tmp_path, body))
    pair.reset(seed=1)
    for _ in range(30):
        pair.step()
    assert pair.env._step_program.given_up and not pair.by_program


@pytest.mark.parametrize("draw", ["torch.rand(1, dtype=torch.float64)", "np.random.default_rng().uniform()"])
def test_a_plant_that_draws_its_own_numbers_goes_on_doing_so(tmp_path, draw):
    env = TaskEnv(own_plant(tmp_path, f"return 0.9 * state + 0.1 * {draw}"))
    env.reset(seed=1)
    ends = set()
    for _ in range(30):
        env.reset(options={"state": [1.0]})
        env.step(np.zeros(1, np.float32))
        ends.add(float(env.state[0]))
    assert len(ends) == 30 and env._step_program.given_up


TRACEABLE = {
    "operations unknown to the trace": """
        flow = torch.erf(action[..., 0]) + torch.atan2(state[..., 0], params["area"]) ** 1.5
        ordered, _ = torch.sort(torch.cat((state, action.to(state.dtype), flow.unsqueeze(-1)), -1).cumsum(-1), -1)
        level = torch.einsum("bi,ij->bj", ordered, torch.ones(3, 2, dtype=state.dtype)).logsumexp(-1, keepdim=True)
        return torch.nn.functional.softplus(torch.linalg.norm(level, dim=-1, keepdim=True))""",
    "loops, views and conditions": """
        level, = state
        for _ in range(3):
            low, high = level < 0.3, ~(level <= 0.6) | level.isnan()
            level = torch.where(low & ~high, level * 1.1, torch.maximum(level - 0.01, 0.5 * level))
        moved = torch.stack([level, level.flip(0)]).movedim(0, -1).transpose(0, 1).reshape(2, -1)
        return (moved[0] + 0.1 * action[..., 0].clamp(max=1.0)).view(1, 1) % 0.7""",
}


@pytest.mark.parametrize("body", TRACEABLE.values(), ids=TRACEABLE)
def test_a_plant_of_many_operations_is_traced(tmp_path, body):
    pair = Pair(own_plant(tmp_path, body))
    pair.reset(seed=1)
    for _ in range(40):
        pair.step()
    assert pair.by_program


def test_tensors_that_a_plant_holds_are_looked_at_again(tmp_path):
    body = "return torch.tanh(state @ self.weight) * self.scale"
    folder = own_plant(tmp_path, body)
    pair = Pair(folder)
    for env in (pair.env, pair.other):
        env.plant.weight = torch.full((1, 1), 1.5, dtype=torch.float64, requires_grad=True)
        env.plant.scale = torch.ones(1, dtype=torch.float64)
    pair.reset(seed=1)
    for change in (1.0, 1.2, 0.7):
        for env in (pair.env, pair.other):
            with torch.no_grad():
                env.plant.weight.mul_(change)
            env.plant.scale *= change
        for _ in range(20):
            pair.step()
    assert pair.by_program


def everything(params, x, y):
    """Whatever the traces do on floats, in both number types."""
    a, b, c = x.unbind(-1)
    narrow = y[..., 0] * 0.1 + y[..., 1].clamp(-1.0, 1.0) ** 2 - (-y[..., 2]).abs() * params["k"]
    bits = [(a < b) & ~(c == a), (a >= 0.5) | (b != c), a.isfinite() & b.isnan().logical_not(), c.gt(y[..., 0])]
    chosen = torch.where(bits[0], a, 2.0 - b) + torch.where(bits[3], narrow, 0.25)
    best = torch.maximum(torch.minimum(a, b), c).clamp(min=b).clamp(-4.0, 5.0).clamp_min(-3.0)
    rest = torch.remainder(a, b) + 3.0 / (c + 9.0) - (a * a + b.square()).sqrt() + a**3 - c.reciprocal()
    sums = torch.add(a, b, alpha=0.3), torch.sub(b, c, alpha=0.7), torch.add(c, a, alpha=0.3)
    return torch.stack((chosen, best, rest, *sums), -1), torch.stack(bits, -1), narrow.unsqueeze(-1)


def test_each_operation_gives_the_bits_of_torch():
    rng = np.random.default_rng(0)
    params = {"k": torch.tensor(0.7, dtype=torch.float64)}

    def tensors(key, x, y):
        return torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float32)

    program, found = StraightLine(load_plant("pendulum"), everything, tensors, patience=0), 0
    pool = [0.0, -0.0, 1.0, -1.0, 0.5, 5.0, 1e-310, 1e30, np.inf, np.nan]
    for _ in range(2000):
        x = [float(rng.choice(pool)) if rng.random() < 0.15 else float(rng.normal(scale=3.0)) for _ in range(3)]
        y = [float(np.float32(number)) for number in rng.normal(size=3)]
        numbers = program("d", params, x, y)
        if numbers is not None:
            found += 1
            expected = everything(params, *tensors("d", x, y))
            assert repr([*numbers]) == repr([(*one.flatten().tolist(),) for one in expected])
    assert found > 1000 and not program.given_up
