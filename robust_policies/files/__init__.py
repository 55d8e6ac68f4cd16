"""The ground: files written whole or not at all, locks, YAML, tensors, and errors of settings in one line."""
