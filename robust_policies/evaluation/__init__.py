"""Evidence: returns under perturbations and attacks, certificates of run folders, and the report."""

from robust_policies.evaluation.certify import certify_run
from robust_policies.evaluation.report import write_report
from robust_policies.evaluation.run import evaluate_run
from robust_policies.evaluation.suites import SUITES, Suite, suite_named

__all__ = ["SUITES", "Suite", "certify_run", "evaluate_run", "suite_named", "write_report"]
