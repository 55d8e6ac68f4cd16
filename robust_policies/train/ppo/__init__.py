"""Recurrent PPO, by sb3-contrib and on tensors."""
