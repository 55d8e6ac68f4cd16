"""The smallest contraction rate that is proven, and after how many steps a difference is forgotten."""

import json
import math

import numpy as np
import pytest
import torch

from robust_policies.certificates import Certificate, compose, verify, verify_arrays
from robust_policies.certificates.decay import least_decay, steps_to_forget
from robust_policies.certificates.lmi import matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier
from robust_policies.certificates.search import Search
from robust_policies.certificates.signals import MEAN_ACTIONS, RAW, Signals
from robust_policies.errors import CorruptFileError
from robust_policies.networks import R2DN, REN, Contracting, Lipschitz

SIGNALS = Signals(RAW, MEAN_ACTIONS, 3, 2)


def cell_of(kind, guarantee, seed, **options):
    torch.manual_seed(seed)
    hidden = {"hidden_sizes": (7, 9)} if kind is R2DN else {}
    return kind(3, 4, 2, features=6, guarantee=guarantee, **hidden, **options).double()


def distances(cell, steps, seed):
    """Return |x_t - x'_t| (steps + 1,) of two copies far apart under the same inputs, as the cell itself steps."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 3 * torch.randn(2, 1, cell.state_size, dtype=torch.float64, generator=generator)
    found = [float((a - b).norm())]
    with torch.no_grad():
        explicit = cell.explicit()
        for _ in range(steps):
            u = torch.randn(1, 3, dtype=torch.float64, generator=generator)
            a, b = cell.step(explicit, u, a)[1], cell.step(explicit, u, b)[1]
            found.append(float((a - b).norm()))
    return np.array(found)


@pytest.mark.parametrize("guarantee", [Contracting(), Lipschitz(3.0)], ids=["contracting", "gain"])
@pytest.mark.parametrize("kind", [R2DN, REN])
def test_cells_designed_without_a_rate_have_one_that_holds(kind, guarantee):
    for seed in range(3):
        cell = cell_of(kind, guarantee, seed)
        found = verify(cell)
        assert found.status == "PASS" and found.rate is not None and found.overshoot is not None
        assert found.rate < 1 and found.overshoot >= 1 and found.forgets is not None
        radius = float(np.abs(np.linalg.eigvals(cell.explicit64().A.detach().numpy())).max())
        assert found.rate >= radius
        for other in range(3):
            measured = distances(cell, found.forgets, other)
            bound = found.overshoot * found.rate ** np.arange(len(measured)) * measured[0]
            assert (measured <= bound * (1 + 1e-9) + 1e-12).all()
            assert measured[-1] <= 0.01 * measured[0]


def test_the_least_rate_of_a_linear_system_is_its_spectral_radius():
    zero = np.zeros((1, 1))
    for slow in (0.3, 0.9, 0.999):
        A = np.array([[slow, 1.0], [0.0, 0.2]])
        model = matrices(A, np.zeros((2, 1)), np.ones((2, 1)), np.zeros((1, 2)), zero, np.ones((1, 2)), zero, zero)
        found = least_decay(Search(model, LipschitzMultiplier(1), 1.0), np.ones(1))
        assert found is not None and slow <= found.rate <= slow + 0.05 * (1 - slow)
        # What was asked of `verify_arrays` stays what it answers.
        assert verify_arrays(model, rate=1.0).rate == 1.0


def test_what_does_not_contract_has_no_rate():
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    for A in (1.0, 1.2):
        model = matrices(A * one, zero, one, zero, zero, one, zero, zero)
        assert least_decay(Search(model, LipschitzMultiplier(1), 1.0), np.ones(1)) is None
    # x+ = 0.5 x + phi(0.6 x): with the slope 1 a difference grows by 1.1 a step.
    model = matrices(0.5 * one, one, one, 0.6 * one, zero, one, zero, zero)
    assert least_decay(Search(model, LipschitzMultiplier(1), 1.0), np.ones(1)) is None
    model = matrices(0.5 * one, one, one, 0.3 * one, zero, one, zero, zero)
    found = least_decay(Search(model, LipschitzMultiplier(1), 1.0), np.ones(1))
    assert found is not None and 0.8 <= found.rate <= 0.8 + 0.05 * 0.2


def test_the_overshoot_is_counted_in_the_steps():
    assert steps_to_forget(0.1, 1.0) == 3 and steps_to_forget(0.5, 1.0) == 7
    assert steps_to_forget(0.5, 1000.0) == 17 == math.ceil(math.log2(100 * 1000.0))
    assert steps_to_forget(1.0, 1.0) is None
    for rate in (0.3, 0.9, 0.99999):
        steps = steps_to_forget(rate, 7.0)
        assert 7.0 * rate**steps <= 0.01 < 7.0 * rate ** (steps - 1)


def test_the_certificate_says_it_and_old_files_stay_readable(tmp_path):
    certificate = compose(verify(cell_of(R2DN, Lipschitz(3.0), 0)), signals=SIGNALS)
    steps = certificate.forgets["steps"]
    assert certificate.forgets == {"percent": 99, "steps": steps}
    assert f"99% of a difference is forgotten within {steps} steps" in certificate.claim
    assert "times their first distance" in certificate.claim
    path = certificate.to_json(tmp_path / "certificate.json")
    content = json.loads(path.read_text())
    assert content["rate"] < 1 and content["forgets"] == certificate.forgets
    for broken in ({"percent": 99}, {"percent": 99, "steps": "many"}, 12, {"percent": 99, "steps": True}):
        path.write_text(json.dumps({**content, "forgets": broken}))
        with pytest.raises(CorruptFileError, match="forgets"):
            Certificate.from_json(path)
    for broken in ({**content["signals"], "inputs": "3"}, {**content["signals"], "ranges": [1.0]}, {"reads": "x"}, 3):
        path.write_text(json.dumps({**content, "signals": broken}))
        with pytest.raises(CorruptFileError):
            Certificate.from_json(path)
    old = {name: value for name, value in content.items() if name not in ("signals", "forgets")} | {"rate": 1.0}
    path.write_text(json.dumps(old))
    read = Certificate.from_json(path)
    assert read.signals is None and read.forgets is None and read.rate == 1.0
