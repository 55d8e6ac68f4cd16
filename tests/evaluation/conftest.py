"""One report on synthetic run folders, shared by the tests that only read it."""

import pytest
from report_fixtures import write_table

from robust_policies.evaluation import write_report


@pytest.fixture(scope="session")
def full_report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_table(root / "runs")
    return write_report(root / "runs", root)
