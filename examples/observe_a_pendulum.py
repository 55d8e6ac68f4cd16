"""The state of a pendulum whose angle alone is measured, by an observer whose error is exactly linear.

Shows: the form that allows it is proven in a region; two Youla inputs see the same innovation on the nonlinear plant;
the estimate as features of any policy.

    python examples/observe_a_pendulum.py --steps 100
"""

import argparse

import gymnasium
import numpy as np
import torch

from robust_policies.control.observers import error_bound, find_output_injection
from robust_policies.envs import load_plant
from robust_policies.policies import ObserverVectorWrapper, YoulaVectorWrapper

PENDULUM = "robust_policies/PendulumNoVelocity-v0"
# The whole circle, and the speeds that one step does not bring to their limit.
REGION = (3.2, 6.9)


def innovations(gain: float, steps: int, observer: str) -> torch.Tensor:
    """Return what a Youla input of this gain sees of the pendulum, (steps,)."""
    env = gymnasium.make_vec(PENDULUM, num_envs=1, dtype="float64")
    env = YoulaVectorWrapper(env, observer=observer, region=REGION)
    env.reset(seed=0, options={"state": np.array([[0.25, 0.1]])})
    youla, seen = torch.zeros(1, 1, dtype=torch.float64), []
    for _ in range(steps):
        # Of the cosine and the sine, where both are measured, the sine's.
        innovation = env.step(youla)[4]["innovation"][:, -1:]
        seen.append(innovation[0, 0])
        youla = gain * torch.tanh(3.0 * innovation) + 0.3 * gain
    return torch.stack(seen)


def main() -> None:
    """Prove the form, compare the observers, and print how well the estimate does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of an episode")
    given = parser.parse_args()
    torch.set_num_threads(1)
    observer = find_output_injection(load_plant("pendulum_no_velocity"), REGION)
    print(f"the form is proven within {REGION}; rounding leaves {observer.defect:.1e}")
    for kind in ("injection", "linear"):
        quiet, moved = (innovations(gain, min(30, given.steps), kind) for gain in (0.0, 6.0))
        print(f"{kind}: innovations of two Youla inputs differ by {float((quiet - moved).abs().max()):.1e}")

    bound = error_bound(observer.model.A, observer.design.L, observer.model.C, np.array([np.pi, 1.0]))
    envs = ObserverVectorWrapper(gymnasium.make_vec(PENDULUM, num_envs=16), observer, include=("estimate",))
    envs.reset(seed=0)
    for _ in range(given.steps):
        _, _, _, _, info = envs.step(torch.zeros(16, 1))
    error = (info["estimate"] - envs.unwrapped.state).remainder(2 * torch.pi)
    error = torch.minimum(error, 2 * torch.pi - error).amax(0)
    print(f"largest error after {given.steps} steps: {error[0]:.1e} rad, {error[1]:.1e} rad/s")
    angle, speed = bound.each(given.steps)
    print(f"proven where no speed is clipped: {angle:.1e} rad, {speed:.1e} rad/s")


if __name__ == "__main__":
    main()
