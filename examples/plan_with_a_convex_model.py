"""A storm tank that is pumped by a plan, with a model that is convex in its inputs and learned from records.

Shows: what the cell `convex` predicts is convex in the pump's plan, so the cost of a plan is too, and a number that
costs one gradient bounds by how much the best of all plans is better. Beside it an LQR, tuned for the same cost, and
the same plans with the tank's own equation in place of the model.

    python examples/plan_with_a_convex_model.py --steps 800 --minutes 120
"""

import argparse
import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from robust_policies.networks import Cell, make_cell

# Levels in m, flows in m^3 a step of a minute over 20 m^2; the limit is to be kept, the price of pumping changes.
LIMIT, HORIZON, OVER, TANKS, DRY = 1.0, 40, 50.0, 16, 0.4
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
Controller = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def next_level(level: Tensor, pump: Tensor, inflow: Tensor) -> Tensor:
    """Return the level a minute later: what flows in, the pump (0 to 1), and an outlet by Torricelli's law."""
    return (level + 0.05 * (inflow - 0.6 * pump - 0.5 * level.clamp(min=1e-3).sqrt())).clamp(min=1e-3)


def weather(minutes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inflows (minutes, tanks) with storms, and the price (minutes, 1) of pumping."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(minutes, dtype=torch.float32).unsqueeze(1)
    starts = torch.rand(1 + minutes // 60, TANKS, generator=generator) * minutes
    lengths = 12 + 14 * torch.rand(starts.shape, generator=generator)
    storms = ((t.unsqueeze(1) >= starts) & (t.unsqueeze(1) < starts + lengths)).any(1)
    return DRY + 0.8 * storms, 1 + 0.8 * torch.sin(2 * math.pi * t / 80)


def costs(levels: Tensor, plan: Tensor, prices: Tensor) -> Tensor:
    """Return the cost (tanks) of levels and a plan (time, tanks): energy, and what is above the limit; both convex."""
    return (prices * plan.square() + OVER * (levels - LIMIT).clamp(min=0).square()).sum(0)


def learned(steps: int) -> Cell:
    """Return a model fitted to records of random pumping: level at first, then pump and inflow -> the levels after."""
    cell = make_cell("convex", 3, 1, state_size=12, rate=0.995)
    optimizer = torch.optim.Adam(cell.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        first = 0.1 + 1.3 * torch.rand(64)
        pump, inflow = (torch.rand(8, 64).repeat_interleave(HORIZON // 8, 0) for _ in range(2))
        inflow = 0.2 + 1.2 * inflow
        level, levels = first, []
        for t in range(HORIZON):
            levels.append(level := next_level(level, pump[t], inflow[t]))
        loss = (predicted(cell)(first, pump, inflow) - torch.stack(levels)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step}: error of the levels {1000 * loss.item() ** 0.5:.1f} mm")
    return cell.requires_grad_(False)


def predicted(cell: Cell) -> Predict:
    """Return (level (tanks), plan, inflows (time, tanks)) -> levels (time, tanks) by the model, convex in the plan."""

    def predict(level: Tensor, plan: Tensor, inflow: Tensor) -> Tensor:
        known = torch.cat((level.unsqueeze(0), torch.zeros_like(plan[1:])))
        return cell(torch.stack((plan, inflow, known), -1))[0].squeeze(-1)

    return predict


def simulated(level: Tensor, plan: Tensor, inflow: Tensor) -> Tensor:
    """Return what `predicted` gives by the tank's own equation."""
    levels = []
    for u, d in zip(plan, inflow, strict=True):
        levels.append(level := next_level(level, u, d))
    return torch.stack(levels)


class Planner:
    """Plans anew at every minute, from the last plan, by projected gradients; `gap` is how far from the best they end.

    A convex cost f on the box 0 <= u <= 1 is nowhere below f(u) + f'(u) (v - u), so no plan v is better than u by more
    than the largest f'(u) (u - v) over the box.
    """

    def __init__(self, predict: Predict, iterations: int = 30) -> None:
        self.predict, self.iterations, self.gap, self.cost = predict, iterations, 0.0, 0.0
        self.plan = torch.full((HORIZON, TANKS), 0.3)

    def __call__(self, t: int, level: Tensor, inflows: Tensor, prices: Tensor) -> Tensor:
        """Return the pump (tanks) at minute t; inflows and prices are those of the horizon from t on."""
        plan = torch.cat((self.plan[1:], self.plan[-1:])).requires_grad_()
        optimizer = torch.optim.Adam([plan], lr=0.1)
        for k in range(self.iterations + 1):
            cost = costs(self.predict(level, plan, inflows), plan, prices)
            (slope,) = torch.autograd.grad(cost.sum(), plan)
            if k < self.iterations:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.85**k
                plan.grad = slope
                optimizer.step()
                with torch.no_grad():
                    plan.clamp_(0, 1)
        self.plan = plan.detach()
        self.gap += float(torch.maximum(slope * self.plan, slope * (self.plan - 1)).sum())
        self.cost += float(cost.detach().sum())
        return self.plan[0]


def lqr(target: float, weight: float, cancelled: float) -> Controller:
    """Return an LQR of the level around a target, which is told this minute's inflow and cancels a share of a storm."""
    a, b, p = 1 - 0.05 * 0.25 / target**0.5, -0.03, 1.0
    for _ in range(2000):
        p = 1 + a * a * p - (a * b * p) ** 2 / (weight + b * b * p)
    gain = a * b * p / (weight + b * b * p)

    def control(t: int, level: Tensor, inflows: Tensor, prices: Tensor) -> Tensor:
        expected = DRY + cancelled * (inflows[0] - DRY)
        return ((expected - 0.5 * target**0.5) / 0.6 - gain * (level - target)).clamp(0, 1)

    return control


def played(control: Controller, minutes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return cost, energy and the share of minutes above the limit (tanks) of a controller."""
    inflows, prices = weather(minutes + HORIZON, seed)
    level, levels, pumps = torch.full((TANKS,), 0.7), [], []
    for t in range(minutes):
        ahead = slice(t, t + HORIZON)
        pumps.append(pump := control(t, level, inflows[ahead], prices[ahead]))
        levels.append(level := next_level(level, pump, inflows[t]))
    level, pump = torch.stack(levels), torch.stack(pumps)
    energy = (prices[:minutes] * pump.square()).sum(0)
    return costs(level, pump, prices[:minutes]), energy, (level > LIMIT + 1e-3).float().mean(0)


def main() -> None:
    """Learn the model, tune the LQR, and print what each controller costs in storms that none was tuned in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="gradient steps of the model")
    parser.add_argument("--minutes", type=int, default=120, help="length of the runs that are compared")
    given = parser.parse_args()
    torch.manual_seed(0)
    cell = learned(given.steps)
    tuned = min(
        product((0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4), (1e-3, 1e-2, 1e-1, 1.0, 10.0), (0.0, 0.5, 1.0)),
        key=lambda choice: float(played(lqr(*choice), given.minutes, seed=1)[0].mean()),
    )
    controllers: dict[str, Controller] = {
        f"LQR (target {tuned[0]:g} m)": lqr(*tuned),
        "plans, convex model": Planner(predicted(cell)),
        "plans, the tank itself": Planner(simulated),
    }
    print(f"{'controller':<26}{'cost: mean (least to most)':>30}{'energy':>9}{'above the limit':>17}{'gap':>9}")
    for name, control in controllers.items():
        cost, energy, above = played(control, given.minutes, seed=2)
        gap = f"{100 * control.gap / control.cost:8.2f}%" if isinstance(control, Planner) else ""
        span = f"{cost.mean():.1f} ({cost.min():.1f} to {cost.max():.1f})"
        print(f"{name:<26}{span:>30}{energy.mean():9.1f}{100 * above.mean():16.1f}%{gap:>9}")
    print("gap: by how much the best plans may be better at most, of the predicted cost of all plans made")


if __name__ == "__main__":
    main()
