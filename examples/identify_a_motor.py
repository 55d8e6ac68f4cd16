"""From a record to a model with a certificate, and a policy trained on the model alone.

Shows: `identify` on data of your own, what is proven of the model, its simulation, and the model as an environment.

    python examples/identify_a_motor.py --steps 800
"""

import argparse
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import torch

from robust_policies.identification import identify, load_model, parse_settings
from robust_policies.train import parse_recipe, train


def measured(folder: Path, seed: int, count: int = 2000) -> str:
    """Return the file of one experiment: a motor with dry friction, its voltage and its speed."""
    rng = np.random.default_rng(seed)
    voltage = np.repeat(rng.uniform(-6.0, 6.0, count // 20), 20)
    speed = np.zeros(count)
    for t in range(count - 1):
        torque = 0.5 * voltage[t] - 0.1 * speed[t] - 0.6 * np.tanh(5.0 * speed[t])
        speed[t + 1] = speed[t] + 0.1 * torque
    path = folder / f"experiment{seed}.npz"
    np.savez(path, voltage=voltage, speed=speed + 0.01 * rng.normal(size=count))
    return str(path)


def main() -> None:
    """Identify, simulate, train on the model, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="updates of the model; a tenth of it of the policy")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = parse_settings(
            {
                "data": {
                    "files": [measured(folder, seed) for seed in range(4)],
                    "inputs": ["voltage"],
                    "outputs": ["speed"],
                    "sample_time": 0.1,
                },
                "cell": {"name": "r2dn", "state_size": 4, "features": 8, "hidden_sizes": [16]},
                "algorithm": {"total_steps": given.steps, "batch": 16, "window": 128},
            },
            "example",
        )
        run = identify(settings, folder / "motor", page=False)
        print(f"fit of the validation: {run.best_reward:.1f} percent")
        model = load_model(folder / "motor")
        print(model.certificate().claim)
        speeds, _ = model.simulate(np.full(50, 3.0))
        print(f"simulated speed after 5 s at 3 V: {speeds[-1, 0]:.2f} rad/s")

        task = {"id": "robust_policies/Identified-v0", "num_envs": 8}
        task["kwargs"] = {"model": str(folder / "motor"), "max_episode_steps": 50}
        recipe = parse_recipe(
            {
                "task": task,
                "policy": {"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [8], "gamma": 5.0},
                "algorithm": {"name": "apg", "total_steps": 40 * given.steps, "horizon": 50},
                "checkpoints": {"evaluate_episodes": 8, "certify_every": 0},
            },
            "example",
        )
        result = train(recipe, folder / "policy")
        idle = gymnasium.make_vec(task["id"], num_envs=8, **task["kwargs"])
        idle.reset(seed=0)
        cost = sum(float(idle.step(torch.zeros(8, 1))[1].mean()) for _ in range(50))
        print(f"mean return on the model: {result.best_reward:.2f}, without an input {cost:.2f}")


if __name__ == "__main__":
    main()
