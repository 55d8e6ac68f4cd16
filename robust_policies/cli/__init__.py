"""The command line; `robust_policies.cli:main` is the command."""

from robust_policies.cli.app import main

__all__ = ["main"]
