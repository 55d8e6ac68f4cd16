"""One argument order: inputs before states, outputs before states, in every cell, actor, attack and teacher.

A swapped call is silent where input and state have one width, so names are compared, not shapes alone.
"""

import ast
import inspect
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import robust_policies
from robust_policies.certificates import gain_search
from robust_policies.control.closed_loop import ClosedLoop
from robust_policies.control.lqg import design
from robust_policies.envs import TorchVectorEnv, register_tasks
from robust_policies.errors import InvalidValueError
from robust_policies.networks import R2DN, REN, Cell, GRUCell, LBDNCell, Lipschitz, LSTMCell, MLPCell
from robust_policies.policies import DeployedPolicy, YoulaPolicy, YoulaVectorWrapper
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.youla.base import BaseController
from robust_policies.policies.youla.policy import YoulaCell
from robust_policies.train.imitation import teacher as teachers

PACKAGE = Path(robust_policies.__file__).parent
INPUTS = {"input", "inputs", "observation", "observations", "innovation", "features"}
STATES = {"state", "states", "hidden", "memory", "lstm_states"}


def subclasses(kind):
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def names(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_every_cell_takes_the_input_first():
    cells = [cell for cell in subclasses(Cell) if cell.__module__.startswith("robust_policies.")]
    assert {R2DN, REN, LBDNCell, LSTMCell, GRUCell, MLPCell, YoulaCell, ClosedLoop} <= set(cells)
    for cell in cells:
        assert names(cell.step) == ["explicit", "input", "state"], cell
        assert names(cell.run) == names(cell.unroll) == ["explicit", "inputs", "state", "starts"], cell
        assert names(cell.forward)[:3] == ["inputs", "state", "starts"], cell


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (ScaledCell.step, ["inputs", "state"]),
        (ScaledCell.run, ["inputs", "state", "starts"]),
        (Actor.step, ["observations", "state"]),
        (Actor.forward, ["observations", "state", "starts"]),
        (FrozenActor.step, ["observations", "state"]),
        (FrozenActor.run, ["observations", "state"]),
        (DeployedPolicy.predict, ["observation", "state", "episode_start", "deterministic"]),
        (DeployedPolicy._act, ["observations", "state", "deterministic"]),
        (YoulaPolicy._act, ["observations", "state", "deterministic"]),
        (YoulaCell.before, ["observation", "state"]),
        (YoulaCell.after, ["innovation", "youla", "hidden", "state"]),
        (BaseController.innovation, ["observation", "state"]),
        (BaseController.estimate, ["innovation", "state"]),
        (BaseController.command, ["innovation", "youla", "state"]),
        (BaseController.update, ["innovation", "sent", "state"]),
        *((kind.act, ["observation", "state", "starts"])
          for kind in vars(teachers).values() if inspect.isclass(kind) and kind.__name__.endswith("Teacher")),
    ],
)  # fmt: skip
def test_what_holds_a_cell_takes_the_input_first(function, expected):
    assert names(function) == expected


def test_no_other_function_takes_a_state_before_an_input():
    # In envs/ a state is the plant's, from which the observation comes: there it is the input.
    swapped = []
    for path in sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "envs"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                states = [i for i, name in enumerate(given) if name in STATES]
                inputs = [i for i, name in enumerate(given) if name in INPUTS]
                if states and inputs and min(states) < max(inputs):
                    swapped.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}({', '.join(given)})")
    assert not swapped, swapped


def test_a_cell_with_the_other_order_is_refused_where_it_is_written():
    with pytest.raises(InvalidValueError, match=r"Odd\.step takes \(explicit, state, input\); expected \(explicit, in"):

        class Odd(GRUCell):
            def step(self, explicit, state, input):
                return state, input

    with pytest.raises(InvalidValueError, match=r"Odd\.run takes"):

        class Odd(GRUCell):
            def run(self, explicit, state, inputs, starts):
                return inputs, state


WIDTH = 4


def r2dn(nu=WIDTH, ny=3):
    torch.manual_seed(0)
    return R2DN(nu, WIDTH, ny, features=5, hidden_sizes=(6,), guarantee=Lipschitz(2.0)).double()


def ren(nu=WIDTH, ny=3):
    torch.manual_seed(0)
    return REN(nu, WIDTH, ny, features=5, guarantee=Lipschitz(2.0)).double()


def gru(nu=WIDTH, ny=3):
    torch.manual_seed(0)
    return GRUCell(nu, WIDTH, ny).double()


def lstm(nu=WIDTH, ny=3):
    torch.manual_seed(0)
    return LSTMCell(nu, WIDTH, ny).double()


def linear_by_hand(cell, explicit, u, x):
    """Return (y, x+) of R2DN and REN written as the sums of products that the model's equations are."""
    e = explicit
    v = torch.einsum("ij,bj->bi", e.C1, x) + torch.einsum("ij,bj->bi", e.D12, u) + e.bv
    if isinstance(cell, REN):
        w = torch.zeros_like(v)
        for i in range(v.shape[1]):
            w[:, i] = cell.activation.function(v[:, i] + w @ e.D11[i])
    else:
        w = v
        for layer in e.layers:
            w = layer.apply(w, cell.activation)
    following = [torch.einsum("ij,bj->bi", a, b) for a, b in ((e.A, x), (e.B1, w), (e.B2, u))]
    outputs = [torch.einsum("ij,bj->bi", a, b) for a, b in ((e.C2, x), (e.D21, w), (e.D22, u))]
    return sum(outputs) + e.by, sum(following) + e.bx


def gated_by_hand(cell, explicit, u, x):
    with torch.no_grad():
        values, last = cell._segment(u[None], x)
    return values[0] @ explicit.C.mT + explicit.by, last


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "by_hand"), [(r2dn, linear_by_hand), (ren, linear_by_hand), (gru, gated_by_hand), (lstm, gated_by_hand)]
)
def test_with_equal_widths_step_is_the_recurrence_and_a_swap_is_not(make, by_hand):
    cell = make()
    assert cell.input_size == cell.state_size
    with torch.no_grad():
        explicit = cell.explicit()
        u, x = drawn(2, 7, WIDTH)
        expected = by_hand(cell, explicit, u, x)
        for given, wanted in zip(cell.step(explicit, u, x), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-10)
        for given, wanted in zip(cell.step(explicit, input=u, state=x), cell.step(explicit, u, x), strict=True):
            assert torch.equal(given, wanted)
        swapped = cell.step(explicit, x, u)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(swapped, expected, strict=True))
        outputs, final = cell.run(explicit, u[None], x, None)
        torch.testing.assert_close((outputs[0], final), expected, rtol=1e-10, atol=1e-10)
        outputs, final = cell(inputs=u[None], state=x)
        torch.testing.assert_close((outputs[0], final), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [r2dn, ren, gru, lstm])
def test_with_unequal_widths_a_swap_fails_on_shapes(make):
    cell = make(nu=3)
    with torch.no_grad():
        explicit, u, x = cell.explicit(), drawn(7, 3), drawn(7, WIDTH)
        assert [value.shape for value in cell.step(explicit, u, x)] == [(7, 3), (7, WIDTH)]
        with pytest.raises(RuntimeError):
            cell.step(explicit, x, u)


@pytest.mark.parametrize("make", [lambda: MLPCell(3, (5,), 2), lambda: LBDNCell(3, (5,), 2)])
def test_without_memory_the_output_comes_first(make):
    cell = make()
    u, empty = torch.randn(7, 3), torch.zeros(7, 0)
    output, state = cell.step(cell.explicit(), u, empty)
    assert output.shape == (7, 2) and state is empty
    with pytest.raises(RuntimeError):
        cell.step(cell.explicit(), empty, u)


def actor_of(cell):
    torch.manual_seed(2)
    scaling = Scaling(WIDTH, [2.0, 1.0, 0.5, 3.0], [0.1, 0.0, 0.3, -1.0])
    normalizer = FrozenNormalizer(np.arange(4.0), np.ones(4), 10.0)
    return Actor(ScaledCell(cell, scaling), MeanHead(cell.output_size, 1, True), normalizer).double()


def test_an_actor_steps_as_its_sequence_does_and_a_swap_is_noticed():
    actor = actor_of(r2dn())
    observations, x = drawn(2, 7, WIDTH)
    with torch.no_grad():
        (action,), final = actor(observations[None], x)
        torch.testing.assert_close(actor.step(observations, x), (action, final), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(actor.step(observations=observations, state=x), actor.step(observations, x))
        torch.testing.assert_close(
            actor.body.step(observations, x),
            actor.cell.step(actor.cell.explicit(), actor.body.scaling(observations), x),
        )
        assert (actor.step(x, observations)[0] - action).abs().max() > 1e-4


def test_a_frozen_actor_and_the_gain_search_step_as_the_actor():
    actor = actor_of(r2dn())
    box = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    policy = DeployedPolicy(actor, gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32), box)
    frozen, mapped = FrozenActor(policy), gain_search.running_map(actor)
    observations, x = drawn(2, 7, WIDTH)
    with torch.no_grad():
        expected = actor.step(observations, x)
        torch.testing.assert_close(frozen.step(observations, x), expected)
        torch.testing.assert_close(frozen.run(observations[None], x)[0], expected[0])
        torch.testing.assert_close(mapped.step(observations, x), expected)
        numbers, state = policy.predict(observations.numpy(), x.numpy())
    np.testing.assert_allclose(numbers, expected[0].clamp(-1, 1).numpy(), rtol=1e-6)
    np.testing.assert_allclose(state, expected[1].numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def youla():
    """Return a wrapped task with a base controller."""
    register_tasks()
    return YoulaVectorWrapper(TorchVectorEnv("double_integrator", 3), limit=1.0)


def test_a_youla_cell_equals_its_parts_written_by_hand(youla):
    base = youla.controller
    torch.manual_seed(0)
    actor = Actor(ScaledCell(R2DN(base.model.p, 2, base.model.m, features=3, hidden_sizes=(4,)), Scaling(base.model.p)),
                  MeanHead(base.model.m, base.model.m, False))  # fmt: skip
    cell = YoulaCell(base, actor)
    y, z = drawn(5, cell.input_size), 0.1 * drawn(5, cell.state_size)
    n = base.model.n
    with torch.no_grad():
        xh, hidden = z[:, :n], z[:, n:].float()
        innovation = y - base.y0 - xh @ base.C.T
        ut, after = actor.step((innovation @ base.innovation_scale.T).float(), hidden)
        ut = ut.double().clamp(-base.youla_high, base.youla_high)
        u = base.u0 - (xh + innovation @ base.M.T) @ base.K.T + ut @ base.input_scale.T
        u = u.clamp(base.low, base.high).to(base.inputs).double()
        xh = xh @ base.A.T + (u - base.u0) @ base.B.T + innovation @ base.L.T
        output, state = cell.step(cell.explicit(), y, z)
    torch.testing.assert_close(output, u)
    torch.testing.assert_close(state, torch.cat((xh, after.double()), 1))


def test_a_closed_loop_steps_as_it_runs(youla):
    model = youla.controller.model
    cell = R2DN(model.p, 2, model.m, features=3, hidden_sizes=(4,), guarantee=Lipschitz(0.5)).double()
    loop = ClosedLoop(model, design(model), cell)
    with torch.no_grad():
        explicit, d, z = loop.explicit(), drawn(5, loop.input_size), drawn(5, loop.state_size)
        outputs, final = loop.run(explicit, d[None], z, None)
        torch.testing.assert_close(loop.step(explicit, d, z), (outputs[0], final))
        torch.testing.assert_close(loop.step(explicit, d, z), linear_by_hand(loop.inner, explicit, d, z))


def test_a_teacher_reads_the_observation_and_goes_on_from_its_state(youla):
    base = youla.controller
    teacher = teachers.LQGTeacher(base)
    y, x, none = drawn(5, base.model.p), 0.1 * drawn(5, base.state_size), torch.zeros(5, dtype=torch.bool)
    action, follow = teacher.act(y, x, none)
    innovation = y - base.y0 - x @ base.C.T
    expected = base.u0 - (x + innovation @ base.M.T) @ base.K.T
    torch.testing.assert_close(action, expected.clamp(base.low, base.high).to(base.inputs).double())
    following = x @ base.A.T + (action - base.u0) @ base.B.T + innovation @ base.L.T
    torch.testing.assert_close(follow(action), following)
