"""A contracting observer of a magnetic levitation, learned, with what is proven of its error.

Shows: pairs of states of a plant whose form allows no exact observer; an R2DN of rate below 1 as observer; its residual
by interval arithmetic, or of runs where that knows nothing; the bound of its error; the innovation in a Youla wrapper.

    python examples/learn_an_observer.py --steps 3000
"""

import argparse

import gymnasium
import numpy as np
import torch

from robust_policies.control.observers import find_output_injection
from robust_policies.identification import (
    ObserverTraining,
    fit_observer,
    interval_residual,
    observer_bound,
    plant_samples,
    statistical_residual,
)
from robust_policies.policies import YoulaVectorWrapper

TASK, MAGLEV = "maglev", "robust_policies/MagLev-v0"
# Half widths about the equilibrium: position [m], speed [m/s], current [A]; voltage [V].
REGION, INPUTS = (0.005, 0.05, 0.5), (2.0,)


def main() -> None:
    """Learn, bound the error, and run a Youla input on the innovation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="updates, each of 128 pairs")
    parser.add_argument("--boxes", type=int, default=20_000, help="at most, of the interval arithmetic")
    given = parser.parse_args()
    torch.set_num_threads(1)
    samples = plant_samples(TASK, REGION, 4096, inputs=INPUTS)
    training = ObserverTraining(epochs=max(1, given.steps // 32), batch=128, learning_rate=5e-3)
    observer = fit_observer(samples, "r2dn", 0.9, training=training)
    try:
        find_output_injection(observer.plant, REGION)
    except ValueError as error:
        print(f"no exact observer: {error}")

    start = [0.1 * half for half in REGION]
    try:
        residual = interval_residual(observer, REGION, INPUTS, boxes=given.boxes)
    except ValueError as error:
        print(error)
        residual = statistical_residual(observer, *runs(observer.plant, samples.states[:200], 10))
    bound = observer_bound(observer, residual, start)
    print(f"{bound.kind}: {bound.claim}")
    for name, now, later in zip(samples.state_names, bound.each(0), bound.each(200), strict=True):
        print(f"{name}: error at most {now:.2e} at first, {later:.2e} after 200 steps")

    env = YoulaVectorWrapper(gymnasium.make_vec(MAGLEV, num_envs=16), observer=observer)
    env.reset(seed=0)
    for _ in range(20):
        innovation, *_, info = env.step(0.1 * torch.tanh(torch.ones(16, 1)))
    print(f"innovations after 20 steps: at most {float(info['innovation'].abs().max()):.2e}, {tuple(innovation.shape)}")


def runs(plant, first, steps):
    """Return random inputs, outputs and states (steps + 1, runs, n) from first states (runs, n)."""
    rng, params = np.random.default_rng(1), plant.prepare(plant.nominal())
    low, high = plant.action_low, plant.action_high
    states, outputs, inputs = [torch.as_tensor(first)], [], []
    for _ in range(steps):
        inputs.append(torch.as_tensor(0.5 * (low + high) + INPUTS[0] * rng.uniform(-1, 1, (len(first), len(low)))))
        outputs.append(plant.observe(states[-1], params))
        states.append(plant.advance(states[-1], inputs[-1], params))
    return [torch.stack(part) for part in (inputs, outputs, states)]


if __name__ == "__main__":
    main()
