"""`python -m robust_policies` is the command `robust-policies`."""

from robust_policies.cli import main

main()
