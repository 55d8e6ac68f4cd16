"""All states of a run, an output that is the state, and initial states that are learned or read from measurements."""

import pytest
import torch

from robust_policies.certificates import verify
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks import (
    R2DN,
    REN,
    Lipschitz,
    MLPCell,
    cell_from_config,
    compiled,
    make_cell,
)
from robust_policies.networks.initial import LearnedState, StateEncoder
from robust_policies.policies.window import WindowCell

NU, NX, NY = 3, 4, 2
OPTIONS = {
    "r2dn": {"state_size": NX, "features": 5, "hidden_sizes": (6, 4)},
    "ren": {"state_size": NX, "features": 5},
    "lstm": {"state_size": NX},
    "gru": {"state_size": NX},
    "mlp": {"hidden_sizes": (5,)},
    "lbdn": {"hidden_sizes": (5,)},
}


def cell_of(name, **options):
    torch.manual_seed(0)
    if name == "window":
        return WindowCell(make_cell("gru", NU, NY, state_size=NX), MLPCell(NY, (3,), NY), 3, True).double()
    return make_cell(name, NU, NY, **OPTIONS[name], **options).double()


def data(cell, time=9, batch=3):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(time, batch, NU, dtype=torch.float64, generator=generator)
    state = torch.randn(batch, cell.state_size, dtype=torch.float64, generator=generator)
    return inputs, state, torch.rand(time, batch, generator=generator) < 0.3


def gradients(cell):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in cell.parameters()]


@pytest.mark.parametrize("way", ["torch", "compiled"])
@pytest.mark.parametrize("name", [*OPTIONS, "window"])
def test_the_trajectory_is_that_of_single_steps(name, way, monkeypatch):
    if way == "compiled":
        pytest.importorskip("numba")
        monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    cell = cell_of(name)
    inputs, state, starts = data(cell)
    outputs, states = cell.trajectory(inputs, state, starts)
    plain, final = cell(inputs, state, starts)
    assert states.shape == (9, 3, cell.state_size)
    assert torch.allclose(outputs, plain, rtol=0, atol=1e-12)
    assert torch.allclose(states[-1], final, rtol=0, atol=1e-12)
    x, explicit = state, cell.explicit()
    for t in range(len(inputs)):
        x = torch.where(starts[t][:, None], torch.zeros_like(x), x)
        y, x = cell.step(explicit, inputs[t], x)
        assert torch.allclose(outputs[t], y, rtol=0, atol=1e-12)
        assert torch.allclose(states[t], x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["r2dn", "ren", "gru"])
def test_all_states_pass_gradients(name):
    cell = cell_of(name)
    inputs, state, starts = data(cell)
    state.requires_grad_()
    weights = torch.randn(9, 3, NX, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (cell.trajectory(inputs, state, starts)[1] * weights).sum().backward()
    fast, first = gradients(cell), state.grad.clone()
    cell.zero_grad()
    state.grad = None
    x, explicit, total = state, cell.explicit(), 0.0
    for t in range(len(inputs)):
        x = torch.where(starts[t][:, None], torch.zeros_like(x), x)
        x = cell.step(explicit, inputs[t], x)[1]
        total = total + (x * weights[t]).sum()
    total.backward()
    assert torch.allclose(first, state.grad, rtol=1e-9, atol=1e-11)
    for one, other in zip(fast, gradients(cell), strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_the_trajectory_begins_at_zero_and_refuses_what_forward_refuses():
    cell = cell_of("r2dn")
    inputs, _, _ = data(cell)
    zero = cell.initial_state(3)
    assert torch.equal(cell.trajectory(inputs)[1], cell.trajectory(inputs, zero)[1])
    with pytest.raises(ShapeError):
        cell.trajectory(inputs.float())
    with pytest.raises(ShapeError):
        cell.trajectory(inputs[:, :, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["r2dn", "ren"])
def test_an_output_that_is_the_state_has_no_parameters_of_an_output(name, dtype):
    torch.manual_seed(0)
    cell = make_cell(name, NU, NX, **OPTIONS[name], output="state", rate=0.9, init="timescales").to(dtype)
    assert not {"C2", "D21", "D22", "by"} & {key for key, _ in cell.named_parameters()}
    assert not {"C2", "D21", "D22", "by"} & set(cell.state_dict())
    inputs = torch.randn(7, 2, NU, dtype=dtype)
    state = torch.randn(2, NX, dtype=dtype)
    outputs, states = cell.trajectory(inputs, state)
    before = torch.cat((state[None], states[:-1]))
    assert torch.allclose(outputs, before, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)
    found = verify(cell)
    assert found.status == "PASS" and found.rate <= 0.9 + 1e-9
    cell(inputs, state)[0].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in cell.parameters() if p.numel())


def test_a_cell_with_its_state_as_output_is_built_again_from_its_config():
    cell = R2DN(NU, NX, NX, 5, (6,), output="state").double()
    again = cell_from_config(cell.config()).double()
    again.load_state_dict(cell.state_dict())
    inputs = torch.randn(5, 2, NU, dtype=torch.float64)
    assert torch.equal(cell(inputs)[0], again(inputs)[0])
    assert "output" not in R2DN(NU, NX, NY, 5, (6,)).config()


@pytest.mark.parametrize(
    "make",
    [
        lambda: R2DN(NU, NX, NY, 5, (6,), output="state"),
        lambda: R2DN(NU, NX, NX, 5, (6,), output="states"),
        lambda: REN(NU, NX, NX, 5, guarantee=Lipschitz(1.0), output="state"),
        lambda: R2DN(NU, NX, NX, 5, (6,), output="state").zero_output_(),
        lambda: REN(NU, NX, NX, 5, output="state").zero_output_(),
    ],
)
def test_an_output_that_cannot_be_the_state_is_refused(make):
    with pytest.raises(InvalidValueError, match="state"):
        make()


def test_a_learned_initial_state_is_a_parameter_that_training_moves():
    cell = cell_of("r2dn")
    initial = LearnedState(cell)
    assert initial.x0.dtype == torch.float64
    inputs, _, _ = data(cell)
    outputs, _ = cell(inputs, initial(3))
    outputs.square().sum().backward()
    assert initial.x0.grad is not None and initial.x0.grad.abs().max() > 0


def test_an_encoder_reads_inputs_and_outputs_of_its_window():
    cell = cell_of("r2dn")
    encoder = StateEncoder(cell, 4, NY, (7,))
    inputs, outputs = torch.randn(4, 3, NU, dtype=torch.float64), torch.randn(4, 3, NY, dtype=torch.float64)
    state = encoder(inputs, outputs)
    assert state.shape == (3, NX) and state.dtype == torch.float64
    changed = outputs.clone()
    changed[0, 1] += 1.0
    other = encoder(inputs, changed)
    assert torch.equal(other[[0, 2]], state[[0, 2]]) and not torch.equal(other[1], state[1])
    with pytest.raises(ShapeError):
        encoder(inputs[:3], outputs[:3])
