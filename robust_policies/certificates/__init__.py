"""What is proven of a cell or policy, and how it is checked without trusting how it was built."""

from robust_policies.certificates.certificate import Certificate, Factor, Verification, compose

__all__ = ["Certificate", "Factor", "Verification", "compose"]
