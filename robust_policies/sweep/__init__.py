"""Sweeps: one recipe over seeds and settings, each trial a run folder of its own."""
