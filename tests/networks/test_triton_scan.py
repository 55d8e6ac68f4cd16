"""The scan as one kernel, by Triton's interpreter, against PyTorch's steps."""

import json
import os
import subprocess
import sys

import pytest
import torch

from robust_policies.networks import ACTIVATIONS, R2DN, REN, Lipschitz, scan, triton_scan

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("tests/test_on_a_gpu.py runs the kernels themselves", allow_module_level=True)


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(triton_scan, "applies", lambda *_, **__: True)


def numbers(widths, time=4, batch=19, seed=0):
    """Return drive, state, AM, Bt, weights and biases, (nx, n_1, ..., n_L) wide, that need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    nx, n1, *others = widths
    pairs = list(zip(others, [n1, *others], strict=False))
    weights, biases = [drawn(n, m) for n, m in pairs], [drawn(n) for n, _ in pairs]
    fixed = drawn(time, batch, nx + n1), drawn(batch, nx), drawn(nx + n1, nx), drawn(nx, (others or [n1])[-1])
    return [*fixed, *weights, *biases], len(weights), torch.rand(time, batch, generator=generator) < 0.3


def doubled(tensors):
    return [one.detach().double().requires_grad_() for one in tensors]


def assert_close(values, expected):
    """Compare float32 with float64, to the rounding of the largest entry."""
    for one, other in zip(values, expected, strict=True):
        scale = max(1.0, float(other.detach().abs().max()))
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * scale)


def found(activation, starts, tensors, layers):
    outputs = scan.scan(activation, starts, *tensors[:4], tensors[4 : 4 + layers], tensors[4 + layers :])
    weights = [torch.linspace(-1, 1, one.numel()).view_as(one) for one in outputs]
    total = sum((one * weight).sum() for one, weight in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(total, tensors, allow_unused=True)]


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_steps(name, resets, monkeypatch):
    tensors, layers, starts = numbers((3, 5, 4, 7))
    given = ACTIVATIONS[name], starts if resets else None, tensors, layers
    expected = found(*given[:2], doubled(tensors), given[3])
    monkeypatch.setattr(triton_scan, "applies", lambda *_, **__: True)
    assert_close(found(*given), expected)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_neurons_that_read_one_another_give_the_steps_values_and_gradients(name, resets, monkeypatch):
    tensors, _, starts = numbers((3, 18), time=3, batch=5)
    tensors.append((torch.randn(18, 18, generator=torch.Generator().manual_seed(1)) / 4).requires_grad_())
    given = ACTIVATIONS[name], starts if resets else None, tensors, 1
    expected = found(*given[:2], doubled(tensors), given[3])
    monkeypatch.setattr(triton_scan, "applies", lambda *_, **__: True)
    assert_close(found(*given), expected)


@pytest.mark.parametrize("widths", [(1, 1), (17, 2), (2, 33, 16), (16, 16, 16)])
def test_every_width_is_padded_without_a_trace(widths, monkeypatch):
    tensors, layers, starts = numbers(widths, time=2, batch=3)
    given = ACTIVATIONS["softplus"], starts, tensors, layers
    expected = found(*given[:2], doubled(tensors), given[3])
    monkeypatch.setattr(triton_scan, "applies", lambda *_, **__: True)
    assert_close(found(*given), expected)


@pytest.mark.parametrize("kind", [R2DN, REN])
def test_a_cell_is_differentiated_twice_as_without_it(kind, on_the_cpu):
    torch.manual_seed(0)
    hidden = {"hidden_sizes": (5,)} if kind is R2DN else {}
    cell = kind(2, 3, 1, 4, activation="tanh", guarantee=Lipschitz(2.0), **hidden)
    inputs = torch.randn(3, 2, 2, requires_grad=True)

    def second(run):
        first = torch.autograd.grad(run(inputs).square().sum(), inputs, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), inputs)[0]

    def slow(inputs):
        return cell.unroll(cell.explicit(), inputs, cell.initial_state(2), None)[0]

    for one, other in zip(second(lambda inputs: cell(inputs)[0]), second(slow), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_does_not_compile_is_left_to_pytorch(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(triton_scan, "_kernels", fails)
    with pytest.warns(UserWarning, match=r"step by step on cpu, not as one Triton kernel: no compiler\.$"):
        assert not triton_scan._works.__wrapped__("tanh", 2, 16, False, torch.device("cpu"))
    monkeypatch.undo()
    assert triton_scan._works.__wrapped__("tanh", 2, 16, False, torch.device("cpu"))
    # A CPU's tensors never ask for it.
    assert not triton_scan.applies("tanh", torch.zeros(2, 2, 7), (3, 4))


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from robust_policies.networks import triton_kernels
from robust_policies.networks.triton_scan import _LAUNCH
found = []
for function in (triton_kernels.forward, triton_kernels.backward):
    numbers = {"time", "batch", "nx", "n1", "last"}
    for layers, serial in ((3, False), (1, True)):
        fixed = {"L": layers, "N": 32, "ROWS": _LAUNCH["ROWS"], "KIND": 1, "RESETS": True, "SERIAL": serial}
        kinds = {n: "constexpr" if n in fixed else "i32" if n in numbers else "*fp32" for n in function.arg_names}
        source = ASTSource(fn=function, signature=kinds, constexprs=fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_stages": _LAUNCH["num_stages"]})
        found.append({"shared": made.metadata.shared, "text": made.asm["ptx"]})
print(json.dumps(found))
"""


def test_the_compiled_kernels_round_nothing_to_tf32_and_fit_a_processor(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for kernel in json.loads(done.stdout):
        assert "fma.rn.f32" in kernel["text"] and "tf32" not in kernel["text"]
        # What every GPU since 2010 gives a kernel that does not ask.
        assert kernel["shared"] <= 48 * 1024
