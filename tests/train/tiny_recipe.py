"""Assignments that make a pendulum recipe train in a second or two."""

from pathlib import Path

TINY = [
    "task.num_envs=4",
    "policy.state_size=4",
    "policy.features=4",
    "policy.hidden_sizes=[4]",
    "algorithm={name: recurrent_ppo, total_steps: 1600, discount: 0.9, learning_rate: lin_1e-3}",
    "algorithm.n_steps=100",
    "algorithm.batch_size=200",
    "algorithm.n_epochs=2",
    "checkpoints.every=400",
    "checkpoints.evaluate_every=800",
    "checkpoints.evaluate_episodes=4",
    "checkpoints.certify_every=0",
    "task.kwargs={max_episode_steps: 50}",
    "evaluation.episodes=3",
    "evaluation.seeds=[0]",
    "evaluation.sizes=[0.0, 0.2]",
    "evaluation.tasks=[robust_policies/Pendulum-v0]",
    f"evaluation.suite={Path(__file__).parents[1] / 'tiny_suite.yaml'}",
]
