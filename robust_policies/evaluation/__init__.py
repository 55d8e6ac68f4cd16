"""Evidence: returns under perturbations and attacks, certificates of run folders, and the report."""

from robust_policies.evaluation.run import certify_run, evaluate_run
from robust_policies.evaluation.suites import SUITES
