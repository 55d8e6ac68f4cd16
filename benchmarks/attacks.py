"""Every attack on one policy side by side: mean return at each size, measured gain, CPU seconds.

python benchmarks/attacks.py RUN_FOLDER [--other RUN_FOLDER] [--task ID] [--norm per_step_l2] [--sizes 0.06,0.11,0.15]

Attacks without gradients of the policy (random, learned, transfer, search "cem") stand beside those with: one of the
former that does better than the latter means that gradients are masked.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from robust_policies.evaluation.attacks import NORMS, prepare_attack, why_not
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.policies import load_policy

TUNING_SEED = 1000
ROWS = (
    ("random", {}),
    ("mad_pgd", {"steps": 10}),
    ("mad_pgd", {"steps": 50, "restarts": 3}),
    ("critic_pgd", {"steps": 10}),
    ("critic_pgd", {"steps": 50, "restarts": 3}),
    ("learned", {}),
    ("sequence_pgd", {}),
    ("sequence_pgd", {"objective": "squared"}),
    ("closed_loop_pgd", {"objective": "last_reward", "window": 50, "replan": 50}),
    ("closed_loop_pgd", {}),
    ("closed_loop_pgd", {"search": "cem", "population": 64}),
    ("closed_loop_pgd", {"plays": 3}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--other", help="a policy of the same task to transfer from")
    parser.add_argument("--task", default="robust_policies/Pendulum-v0")
    parser.add_argument("--norm", default="per_step_l2", choices=NORMS)
    parser.add_argument("--sizes", default="0.06,0.11,0.15,0.21,0.3")
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    policy, sizes = load_policy(given.folder), [float(size) for size in given.sizes.split(",")]
    transfers = [
        ("transfer", {"policy": given.other, "mode": mode, "attack": attack})
        for mode, attack in (("replay", "closed_loop_pgd"), ("adapt", "closed_loop_pgd"), ("replay", "sequence_pgd"))
    ]
    print("| attack | " + " | ".join(f"{size:g}" for size in sizes) + " | largest gain | CPU s |")
    print("|---|" + "--:|" * (len(sizes) + 2))
    for name, options in (*ROWS, *(transfers if given.other else ())):
        if why_not(name, given.task) is not None or why_not(str(options.get("attack", name)), given.task) is not None:
            continue
        began = time.process_time()
        prepared = prepare_attack(name, policy, given.task, given.norm, options, [TUNING_SEED], sizes=sizes)
        found = run_episodes(
            policy, given.task, name, sizes, given.episodes, 0, norm=given.norm, options=options, prepared=prepared
        )
        shown = ", ".join(f"{key} {value}" for key, value in options.items() if key != "policy")
        returns = " | ".join(f"{value:.0f}" for value in found.returns.mean(axis=1))
        seconds = time.process_time() - began
        print(f"| {name} {shown} | {returns} | {np.nanmax(found.gains):.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
