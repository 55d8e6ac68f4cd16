"""Ours beside PPO in JAX (peers/jax_ppo.py): the part `jax` of training.py.

Each side is a process of one thread that trains a round for every line it reads; they alternate. Both have the same
equations, environments, steps, epochs, minibatches, critic, rates and discounts, and train the same number of updates.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
PEER = HERE.parent / "peers" / "jax_ppo.py"
UPDATES = 8
OURS = ("gru", "r2dn")


class Process:
    """A side, which answers each line with one line of JSON; what it says first is `head`."""

    def __init__(self, command: list[str]) -> None:
        # One thread for XLA too.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        root = str(HERE.parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command, "--updates", str(UPDATES)],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.head = self._line()

    def round(self) -> dict[str, Any]:
        """Return what one round took."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}; see its message above.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def beside_jax(rounds: int) -> dict[str, Any]:
    """Return the steps per CPU second with learning of all sides and the returns they reach, or why there are none."""
    missing = [name for name in ("jax", "optax") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} cannot be imported; pip install 'robust-policies[peers]'"}
    sides = {"jax_gru": Process([str(PEER)])}
    sides |= {f"ours_{cell}": Process([str(HERE), cell]) for cell in OURS}
    # The first round of each is for warming up, where PyTorch and numba load.
    found = [{name: side.round() for name, side in sides.items()} for _ in range(rounds + 1)]
    rows = []
    for name, side in sides.items():
        side.close()
        spent, steps = (sum(one[name][key] for one in found[1:]) for key in ("cpu_s", "steps"))
        row = {"name": name, "steps_per_cpu_second": float(f"{steps / spent:.4g}"), **side.head}
        rows.append(row | {key: found[-1][name][key] for key in ("updates", "mean_return")})
    for row in rows:
        row["ratio_to_jax"] = float(f"{row['steps_per_cpu_second'] / rows[0]['steps_per_cpu_second']:.3g}")
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"rows": rows}


def main() -> None:
    """Train ours as the lines say, by the cell that is the first argument."""
    import torch
    from sides import CELLS, PENDULUM

    from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
    from robust_policies.policies import RecurrentCellPolicy
    from robust_policies.train import TensorRecurrentPPO

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    cell, updates = sys.argv[1], int(sys.argv[3])
    model = TensorRecurrentPPO(
        RecurrentCellPolicy, make_sb3_vec_env(PENDULUM, 128, seed=0), n_steps=64, batch_size=2048, device="cpu",
        n_epochs=10, seed=0, gamma=0.9, gae_lambda=0.95, learning_rate=1e-3, spread_episodes=True,
        policy_kwargs={"cell": cell, "cell_kwargs": {**CELLS, "gru": {"state_size": 16}}[cell], "critic": "mlp"},
    )  # fmt: skip
    print(json.dumps({}), file=answers, flush=True)
    done = 0
    for _ in sys.stdin:
        steps = updates * model.n_steps * model.n_envs
        began = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        spent, done = time.process_time() - began, done + updates
        returns = [episode["r"] for episode in model.ep_info_buffer or ()]
        mean = float(sum(returns) / len(returns)) if returns else None
        print(
            json.dumps({"cpu_s": spent, "steps": steps, "updates": done, "mean_return": mean}), file=answers, flush=True
        )


if __name__ == "__main__":
    main()
