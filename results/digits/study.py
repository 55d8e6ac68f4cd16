"""Classifiers of scikit-learn's digits, how far each answer is proven to hold, and an attack on it.

A classifier's logits z(u) read 64 pixels in 0 to 1. With L_yj a bound of how much z_y - z_j differs where every pixel
differs by at most 1, an answer y holds for every change of all pixels by at most min_j (z_y - z_j) / L_yj: its radius.

Source of the training for large radii: Y. Tsuzuku, I. Sato and M. Sugiyama, "Lipschitz-margin training", NeurIPS 2018.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robust_policies.certificates import implicit_gain
from robust_policies.certificates.ball import Ball
from robust_policies.certificates.layers import exactly, layers_bound, spectral_bound
from robust_policies.certificates.lmi import Array
from robust_policies.evaluation.attacks.search import Objective, ascend
from robust_policies.networks import LBDN
from robust_policies.networks.implicit import NemonClassifier

PIXELS, CLASSES, TEST = 64, 10, 360
RADII = (0.01, 0.02, 0.05, 0.1, 0.15)
MARGIN = 0.05
"""The radius that classifiers are trained for, where they are."""
EPOCHS, BATCH, RATE = 40, 64, 3e-3
# Of logits in float64: a margin below it counts for nothing, and their rounding lies four orders of magnitude below.
_ROUNDING = 1e-9


class Digits(NamedTuple):
    """Pixels (n, 64) in 0 to 1, float64, and digits (n,) to learn from and to test on."""

    pixels: Tensor
    digits: Tensor
    test_pixels: Tensor
    test_digits: Tensor


class Nemon(NemonClassifier):
    """The implicit classifier: its bound is that of its layer in the l-infinity norm."""

    def __init__(self) -> None:
        super().__init__(PIXELS, 48, CLASSES)

    def differences(self) -> Tensor:
        """Return L (classes, classes), differentiable."""
        e = self.layer.explicit()
        entering = (e.U.abs().sum(1) / e.eta).max() / (1 - max(self.layer.m, 0.0))
        return (self.head.weight.unsqueeze(0) - self.head.weight.unsqueeze(1)).abs() @ e.eta * entering

    def proven(self) -> Array:
        """Return L (classes, classes) in float64, rounded up."""
        return implicit_gain(self.layer.explicit(), _apart(self.head.weight)).reshape(CLASSES, CLASSES)


class Sandwich(LBDN):
    """An LBDN: pixels that differ by 1 each differ by sqrt(64) = 8 in the l2 norm, in which it is bounded."""

    def __init__(self) -> None:
        super().__init__(PIXELS, (64, 64), CLASSES, gamma=1.0, trainable_gamma=True)

    def differences(self) -> Tensor:
        """Return L (classes, classes), differentiable."""
        e = self.explicit()
        rows = e.layers[-1].B
        apart = ((rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(-1) + 1e-12).sqrt()
        return PIXELS**0.5 * e.scale.square() * apart

    def proven(self) -> Array:
        """Return L (classes, classes) in float64, rounded up."""
        e = self.explicit()
        apart = np.linalg.norm(_apart(e.layers[-1].B), axis=1).reshape(CLASSES, CLASSES)
        before = layers_bound(e.layers[:-1]) * float(e.scale.double()) ** 2
        return PIXELS**0.5 * before * apart * (1 + 1e-12)


class Perceptron(nn.Sequential):
    """An MLP: its bound is the product of its layers' norms, in the l-infinity or the l2 norm, whichever is smaller."""

    def __init__(self) -> None:
        widths = [PIXELS, 64, 64, CLASSES]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(*layers[:-1])

    @property
    def weights(self) -> list[Tensor]:
        """The layers' weights, first layer first."""
        return [layer.weight for layer in self if isinstance(layer, nn.Linear)]

    def differences(self) -> Tensor:
        """Return L (classes, classes) of the norms in l-infinity, differentiable."""
        *inner, last = self.weights
        apart = (last.unsqueeze(0) - last.unsqueeze(1)).abs().sum(-1)
        for weight in inner:
            apart = apart * weight.abs().sum(1).max()
        return apart

    def proven(self) -> Array:
        """Return L (classes, classes) in float64, rounded up."""
        *inner, last = (exactly(weight) for weight in self.weights)
        apart = _apart(last)
        largest = np.prod([np.abs(weight).sum(1).max() for weight in inner]) * np.abs(apart).sum(1)
        lengths = np.prod([spectral_bound(weight) for weight in inner]) * np.linalg.norm(apart, axis=1)
        return np.minimum(largest, PIXELS**0.5 * lengths).reshape(CLASSES, CLASSES) * (1 + 1e-12)


class Method(NamedTuple):
    """A classifier, and whether it is trained for a radius; its name in tables."""

    make: Callable[[], Any]
    margin: bool
    title: str


METHODS: dict[str, Method] = {
    "nemon": Method(Nemon, True, "nemon, trained for a radius"),
    "lbdn": Method(Sandwich, True, "LBDN, trained for a radius"),
    "mlp_margin": Method(Perceptron, True, "MLP, trained for a radius"),
    "mlp": Method(Perceptron, False, "MLP"),
}


def load(seed: int) -> Digits:
    """Return scikit-learn's 1,797 digits of 8x8 pixels, split by the seed; nothing is downloaded."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    u, y = torch.as_tensor(pixels[order] / 16.0), torch.as_tensor(digits[order])
    return Digits(u[TEST:], y[TEST:], u[:TEST], y[:TEST])


def train(method: Method, data: Digits, seed: int, epochs: int = EPOCHS) -> Any:
    """Return a classifier, trained in float32; for a radius by the logits of the others raised by the radius times L.

    The radius rises from 0 to `MARGIN` over the first half.
    """
    torch.manual_seed(seed)
    model, u, y = method.make(), data.pixels.float(), data.digits
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    batches = len(u) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        for part in torch.randperm(len(u))[: batches * BATCH].reshape(batches, BATCH):
            logits = model(u[part])
            if method.margin:
                logits = logits + MARGIN * min(1.0, 2 * epoch / epochs) * model.differences()[y[part]]
            loss = functional.cross_entropy(logits, y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def radii(logits: Array, digits: Array, bounds: Array) -> Array:
    """Return within which change of every pixel each answer is proven to stay right (n,); below 0 where it is wrong.

    Args:
        logits: (n, classes), float64.
        digits: (n,) the right ones.
        bounds: L (classes, classes).
    """
    each = np.arange(len(digits))
    margins = logits[each, digits][:, None] - logits - _ROUNDING
    with np.errstate(divide="ignore", invalid="ignore"):
        found = margins / bounds[digits]
    found[each, digits] = np.inf
    return found.min(axis=1)


def attacked(model: Any, data: Digits, radius: float, seed: int, steps: int = 20, restarts: int = 2) -> Array:
    """Return whether each test digit (n,) is still right after projected gradients within the radius of every pixel.

    A change that is found in float32 counts where it misleads the classifier in float64.
    """
    u, y = data.test_pixels.float().unsqueeze(0), data.test_digits
    wrong = functional.one_hot(y, CLASSES).float() * 1e9

    def lead(delta: Tensor) -> Tensor:
        times = delta.shape[1] // len(y)
        logits = model((u.repeat(1, times, 1) + delta).squeeze(0))
        own = logits.gather(1, y.repeat(times).unsqueeze(1)).squeeze(1)
        return (logits - wrong.repeat(times, 1)).amax(1) - own

    ball = Ball("per_step_linf", torch.full((len(y),), radius))
    starts = radius * (2 * torch.rand(restarts, 1, len(y), PIXELS, generator=torch.Generator().manual_seed(seed)) - 1)
    model.float()
    delta, _ = ascend(Objective(lead), starts, ball, steps=steps, rate=0.5)
    model.double()
    moved = delta[0].double().clamp(-radius, radius)
    with torch.no_grad():
        return (model(data.test_pixels + moved).argmax(1) == y).numpy()


def measure(name: str, seed: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Return what a classifier does with digits that it has not seen."""
    method, data, began = METHODS[name], load(seed), time.process_time()
    model = train(method, data, seed, epochs)
    seconds = time.process_time() - began
    model.double()
    with torch.no_grad():
        logits, bounds = model(data.test_pixels).numpy(), model.proven()
    digits = data.test_digits.numpy()
    holds = radii(logits, digits, bounds)
    found = [attacked(model, data, radius, seed) for radius in RADII]
    # What a smaller radius misleads, a larger one does too.
    right = np.minimum.accumulate([logits.argmax(1) == digits, *found])
    return {
        "method": name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "accuracy": float(right[0].mean()),
        "attacked": [float(one.mean()) for one in right[1:]],
        "certified": [float((holds > radius).mean()) for radius in RADII],
        "certified_but_misled": int(sum(((holds > r) & ~one).sum() for r, one in zip(RADII, right[1:], strict=True))),
        "median_radius": float(np.median(holds)),
        "bound": float(bounds.max()),
        "train_seconds": seconds,
    }


def _apart(rows: Any) -> Array:
    """Return all differences of two rows (classes^2, n)."""
    rows = exactly(rows) if hasattr(rows, "detach") else rows
    return (rows[:, None, :] - rows[None, :, :]).reshape(-1, rows.shape[1])


def seeds_of(rows: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    """Return the rows of a method, its seeds in order."""
    return sorted((row for row in rows if row["method"] == method), key=lambda row: row["seed"])
