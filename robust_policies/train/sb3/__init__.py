"""Stable-Baselines3's own SAC, TD3 and PPO: a recipe -> a run folder, with checkpoints that continue exactly."""
