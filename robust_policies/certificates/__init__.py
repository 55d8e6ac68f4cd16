"""What is proven of a cell or policy, and how it is checked without trusting how it was built."""

from robust_policies.certificates.certificate import Certificate, Factor, Verification, compose, not_certified
from robust_policies.certificates.gain import GainCurve, GainResult, empirical_gain, gain_curve, secant_gain
from robust_policies.certificates.verify import verify, verify_arrays, verify_chain, verify_layers

__all__ = [
    "Certificate",
    "Factor",
    "GainCurve",
    "GainResult",
    "Verification",
    "compose",
    "empirical_gain",
    "gain_curve",
    "not_certified",
    "secant_gain",
    "verify",
    "verify_arrays",
    "verify_chain",
    "verify_layers",
]
