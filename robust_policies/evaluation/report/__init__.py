"""The report: run folders in, one self-contained page and a set of pictures out."""

from robust_policies.evaluation.report.page import write_report

__all__ = ["write_report"]
