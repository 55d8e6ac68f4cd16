"""A certified cell in a training loop of your own: learn a filter, with a gain that no gradient step can break.

Shows: an R2DN is a PyTorch module; whatever the optimizer does, its Lipschitz bound holds, and `verify` proves it from
the matrices that run.

    python examples/plain_pytorch.py --steps 300
"""

import argparse

import torch

from robust_policies.certificates import empirical_gain, verify
from robust_policies.networks import R2DN, Lipschitz


def main() -> None:
    """Train, and print the loss, what is proven and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="gradient steps")
    given = parser.parse_args()
    torch.manual_seed(0)
    cell = R2DN(1, 8, 1, features=16, hidden_sizes=(16,), guarantee=Lipschitz(2.0), rate=0.95)
    optimizer = torch.optim.Adam(cell.parameters(), lr=1e-2)
    for step in range(given.steps):
        inputs = torch.randn(60, 32, 1)  # (time, batch, channels)
        smooth = torch.zeros(32, 1)
        target = torch.stack([smooth := 0.8 * smooth + 0.2 * row for row in inputs])
        outputs, _ = cell(inputs)
        loss = (outputs - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, given.steps // 5) == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    found = verify(cell)
    print(f"{found.status}: gain at most {found.gamma:.3f}, contraction rate at most {found.rate}")
    print(f"largest gain found in 20 steps: {empirical_gain(cell, steps=20).gain:.3f}")


if __name__ == "__main__":
    main()
