"""Costs along trajectories in which signals are clipped: nothing moves a signal or costs more than its bound."""

import numpy as np
import pytest
import torch

from robust_policies.certificates.clipped import ClippedAlong, Clips, Moves
from robust_policies.certificates.impulse import impulse_gains
from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.reach import reach_of
from robust_policies.certificates.trajectory import Along, Perturbation, gain_of

STEPS, EPISODES, LIMIT = 8, 3, 0.8
NAMES = ("A", "B1", "B2", "C1", "D11", "D12")


class Case:
    """A random loop whose one signal s = c x + f w + g d is clipped and enters the state as what is left off."""

    def __init__(self, seed, nx=2, nv=3, nd=2, nz=2):
        rng = np.random.default_rng(seed)
        A, normal = rng.standard_normal((nx, nx)), rng.standard_normal
        self.parts = {
            "A": A * 0.7 / np.abs(np.linalg.eigvals(A)).max(),
            "B1": 0.15 * normal((nx, nv)),
            "B2": normal((nx, nd)),
            "C1": 0.5 * normal((nv, nx)),
            "D11": np.tril(0.3 * normal((nv, nv)), -1),
            "D12": 0.3 * normal((nv, nd)),
        }
        self.z = {"C2": normal((nz, nx)), "D21": 0.3 * normal((nz, nv)), "D22": 0.3 * normal((nz, nd))}
        self.s = {"C2": normal((1, nx)), "D21": 0.3 * normal((1, nv)), "D22": 0.3 * normal((1, nd))}
        self.left = 0.5 * normal((nx, 1)), 0.3 * normal((nz, 1))
        self.bias, self.start = normal(nv), normal((EPISODES, nx))

    def neurons(self):
        """Return d -> z without a clip, (d, left off) -> s, and d -> z with what is left off as a neuron."""
        p, nv, zero = self.parts, self.parts["B1"].shape[1], np.zeros
        plain = Matrices(**p, **self.z)
        wide = {"B2": np.hstack((p["B2"], self.left[0])), "D12": np.hstack((p["D12"], zero((nv, 1))))}
        signal = Matrices(**{**p, **wide}, **{**self.s, "D22": np.hstack((self.s["D22"], zero((1, 1))))})
        whole = Matrices(
            A=p["A"],
            B1=np.hstack((p["B1"], self.left[0])),
            B2=p["B2"],
            C1=np.vstack((p["C1"], self.s["C2"])),
            D11=np.block([[p["D11"], zero((nv, 1))], [self.s["D21"], zero((1, 1))]]),
            D12=np.vstack((p["D12"], self.s["D22"])),
            C2=self.z["C2"],
            D21=np.hstack((self.z["D21"], self.left[1])),
            D22=self.z["D22"],
        )
        return Neurons(plain, np.ones(nv)), Neurons(signal, np.ones(nv)), whole

    def played(self, d):
        """Return z (time, episodes, nz) and s (time, episodes, 1), differentiable in d (time, episodes, nd)."""
        A, B1, B2, C1, D11, D12 = (torch.as_tensor(self.parts[name]) for name in NAMES)
        z, s = ({name: torch.as_tensor(value) for name, value in part.items()} for part in (self.z, self.s))
        into, shown = map(torch.as_tensor, self.left)
        x, costs, signals = torch.as_tensor(self.start), [], []
        for now in d:
            v = x @ C1.T + now @ D12.T + torch.as_tensor(self.bias)
            w = torch.zeros_like(v)
            for _ in self.bias:
                w = torch.relu(v + w @ D11.T)
            signal = x @ s["C2"].T + w @ s["D21"].T + now @ s["D22"].T
            off = signal - signal.clamp(-LIMIT, LIMIT)
            costs.append(x @ z["C2"].T + w @ z["D21"].T + now @ z["D22"].T + off @ shown.T)
            signals.append(signal)
            x = x @ A.T + w @ B1.T + now @ B2.T + off @ into.T
        return torch.stack(costs), torch.stack(signals)


def attacks(case, size, worst):
    """Yield noise, a square wave and what attains the bound, each climbed along the gradient; each step of a size."""
    shape = (STEPS, EPISODES, 2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wave = torch.sign(torch.sin(0.7 * torch.arange(STEPS) + 0.1)).double()[:, None, None].expand(shape)
    for d in (noise, wave, torch.as_tensor(worst)):
        for _ in range(4):
            d = (size * d / d.norm(dim=2, keepdim=True).clamp_min(1e-300)).detach().requires_grad_()
            yield d.detach()
            (d,) = torch.autograd.grad(case.played(d)[0].square().sum(), d)


def bounded(seed, size, iterations):
    """Return whether a random loop has a bound and clips, after the comparison with attacks."""
    case = Case(seed)
    plain, signal, whole = case.neurons()
    gain = gain_of(plain)
    z, s = (part.numpy() for part in case.played(torch.zeros(STEPS, EPISODES, 2, dtype=torch.float64)))
    clips = Clips(s, np.full(1, -LIMIT), np.full(1, LIMIT))
    if gain is None or not (clips.room() < 0).any():
        return False
    model, perturbation = signal.model, Perturbation("per_step_l2", size)

    def part(columns):
        B2, D12, D22 = (getattr(model, name)[:, columns] for name in ("B2", "D12", "D22"))
        return signal._replace(model=Matrices(**{**case.parts, "B2": B2, "D12": D12}, **{**case.s, "D22": D22}))

    free, left = (reach_of(part(c), STEPS, np.ones((1, len(c)))) for c in ([0, 1], [2]))
    moves = Moves([free], impulse_gains(part([2]), STEPS), [[left]])
    reach = moves.reached(clips, moves.unclipped(perturbation, STEPS, 2))
    along = ClippedAlong(whole, z, *clips.slopes(reach), (clips.room() < 0).any(2))
    found = Along(plain.model, plain.family, z).bounds(gain, perturbation, (4, 4))
    mu, theta = found.multipliers or (np.full((1, 1), 2 * gain.gain**2), 2 * gain.theta[None])
    bounds = along.bounds(mu, np.maximum(theta, 1e-9), perturbation, iterations)
    if bounds is None:
        return False
    for d in attacks(case, size, bounds[1]):
        cost, moved = case.played(d)
        assert (np.abs(moved.numpy() - s) <= reach).all()
        assert (cost.square().sum((0, 2)).numpy() <= bounds[0]).all()
    return True


def test_no_attack_on_a_random_clipped_loop_costs_more_than_its_bound():
    assert sum(bounded(seed, size, 6) for seed in range(6) for size in (0.02, 0.3)) >= 6


@pytest.mark.soak
def test_no_attack_on_many_random_clipped_loops_costs_more_than_its_bound():
    assert sum(bounded(seed, size, 40) for seed in range(110) for size in (0.02, 0.3)) >= 100


def test_a_slope_is_known_where_nothing_or_all_is_clipped_whatever_happens():
    clips = Clips(np.array([0.0, 0.9, 1.5, -1.1])[:, None, None], -np.ones(1), np.ones(1))
    reach = np.full((4, 1, 1), 0.2)
    lower, upper = (part[:, 0, 0] for part in clips.slopes(reach))
    np.testing.assert_allclose(lower, [0.0, 0.0, 1.0, 0.5], atol=1e-12)
    np.testing.assert_allclose(upper, [0.0, 0.5, 1.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(clips.left_off(reach, clips.room())[:, 0, 0], [0.0, 0.1, 0.2, 0.2], atol=1e-12)


def test_without_neurons_the_reach_is_the_sum_of_the_impulse_response():
    A, B, C = np.array([[0.8, 0.3], [-0.2, 0.7]]), np.array([[1.0], [0.5]]), np.array([[1.0, -1.0]])
    none = np.zeros
    model = Matrices(A=A, B1=none((2, 0)), B2=B, C1=none((0, 2)), D11=none((0, 0)), D12=none((0, 1)), C2=C,
                     D21=none((1, 0)), D22=np.full((1, 1), 0.2))  # fmt: skip
    neurons = Neurons(model, none(0))
    response = np.abs([0.2, *((C @ np.linalg.matrix_power(A, k) @ B).item() for k in range(29))])
    reach = reach_of(neurons, 30, np.ones((1, 1))).bound(np.ones(1))
    assert reach[-1] == pytest.approx(response.sum(), rel=1e-2) and (reach >= np.cumsum(response) * (1 - 1e-9)).all()
    np.testing.assert_allclose(impulse_gains(neurons, 30)[:, 0, 0], response, atol=1e-12)
    whole = reach_of(neurons, 30, np.ones((1, 1)), whole=True).bound(np.ones(1), whole=True)
    assert whole[-1] == pytest.approx(np.linalg.norm(response), rel=1e-6)
