"""A MuJoCo model of your own, observed and rewarded by a list of terms, trained by TensorRecurrentPPO.

Shows: the MJCF file and a `task.yaml` beside it are the environment, without a line of Python; `register_task` gives it
an id for `gymnasium.make`, `gymnasium.make_vec` and the recipes.

    python examples/own_mjcf.py --steps 200000
"""

import argparse
from pathlib import Path

from robust_policies.envs import make_sb3_vec_env, register_task
from robust_policies.evaluation import run_episodes
from robust_policies.policies import RecurrentCellPolicy, deploy
from robust_policies.train import TensorRecurrentPPO

MODEL = """\
<mujoco model="crane">
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <body name="trolley" pos="0 0 1.2">
      <joint name="rail" type="slide" axis="1 0 0" range="-1 1" limited="true" damping="0.5"/>
      <geom type="box" size="0.1 0.1 0.05" mass="2"/>
      <body name="load" pos="0 0 -0.6">
        <joint name="swing" type="hinge" axis="0 1 0" pos="0 0 0.6" damping="0.01"/>
        <geom type="sphere" size="0.08" mass="1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="drive" joint="rail" gear="20" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
TASK = """\
schema: 1
plant: mujoco
description: Bring the trolley to the middle without swinging the load.
model: crane.xml
frame_skip: 4                        # model time steps of 0.005 s
time_step: 0.02                      # s
max_episode_steps: 200
observation:                         # m, rad, m/s, rad/s
  - {positions: all}
  - {velocities: all, clip: 5.0}
reward:
  - {term: square, of: {positions: [rail]}, weight: -1.0}
  - {term: square, of: {positions: [swing]}, weight: -1.0}
  - {term: control, weight: -0.01}
reset:
  positions: {spread: 0.5}           # uniform within plus and minus
"""


def main() -> None:
    """Train, and print the claim and the mean return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of training")
    parser.add_argument("--output", type=Path, default=Path("results/crane"), help="folder of the task")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "crane.xml").write_text(MODEL)
    (given.output / "task.yaml").write_text(TASK)
    env_id = register_task("examples/Crane-v0", given.output)

    envs = make_sb3_vec_env(env_id, num_envs=16, seed=0)
    cell = dict(state_size=8, features=16, hidden_sizes=(16,), gamma=10.0)
    model = TensorRecurrentPPO(
        RecurrentCellPolicy,
        envs,
        n_steps=50,
        batch_size=400,
        learning_rate=1e-3,
        policy_kwargs=dict(cell="r2dn", cell_kwargs=cell, critic="mlp"),
        normalize_reward=True,
        seed=0,
        device="cpu",
    )
    model.learn(given.steps)
    policy = deploy(model)
    print(policy.certificate().claim)
    found = run_episodes(policy, env_id, "uniform", [0.0], episodes=10, seed=1)
    print(f"return {found.returns.mean():.1f} over 10 episodes")


if __name__ == "__main__":
    main()
