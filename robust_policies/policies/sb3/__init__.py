"""Cells inside Stable-Baselines3's policies, and how a trained one is deployed and certified."""
