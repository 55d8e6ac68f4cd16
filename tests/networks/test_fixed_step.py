"""An R2DN's step with fixed arrays does what the plain step and its graph do."""

from __future__ import annotations

import pytest
import torch

from robust_policies.networks import R2DN


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("linear_output", [True, False])
def test_a_fixed_step_and_its_gradients_are_those_of_the_plain_step(activation: str, linear_output: bool) -> None:
    torch.manual_seed(0)
    cell = R2DN(3, 5, 2, 7, (6, 4), activation=activation, linear_output=linear_output).requires_grad_(False)
    with torch.no_grad():
        for bias in (cell.bx, cell.bv, cell.by):
            bias.normal_()
    explicit = cell.explicit()
    fixed = cell.fixed_step(explicit)
    inputs = [torch.randn(9, size).requires_grad_() for size in (3, 5)]
    weights = [torch.randn(9, size) for size in (2, 5)]

    def gradients(step):
        given = step(*inputs)
        return given, torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, given, strict=True)), inputs)

    plain, slopes = gradients(lambda *values: cell.step(explicit, *values))
    for again, found in (gradients(fixed),):
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        torch.testing.assert_close(found, slopes)
    # By the collapsed arrays: the same but for rounding.
    with torch.no_grad():
        output, following, kept = fixed.forward(*inputs)
        torch.testing.assert_close((output, following), plain)
        torch.testing.assert_close(fixed.backward(kept, *weights), slopes)
