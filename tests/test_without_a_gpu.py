"""What runs on a CUDA device, run where there is none: no device is mixed, numbers are the CPU's, waits are known."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from card_cases import CELLS, build_cell, there
from cuda_without_one import Card, cuda_without_one, moved
from torch._subclasses.fake_tensor import FakeTensorMode

from robust_policies import checks
from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.envs.mujoco import warp_backend
from robust_policies.errors import DeviceError
from robust_policies.networks import known_cells
from robust_policies.networks.linalg import inverted, lower_root, solved
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO

# cuDNN's networks are cut where episodes begin, and a spectral norm is an iteration: once in a run, never in a step.
CELL_WAITS = {
    "lstm": {"networks/baselines.py:_hidden nonzero": 1, "networks/baselines.py:_hidden tolist": 1},
    "gru": {"networks/baselines.py:_hidden nonzero": 1, "networks/baselines.py:_hidden tolist": 1},
    "convex": {"networks/convex.py:explicit _linalg_svd": 1},
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
