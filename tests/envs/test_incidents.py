"""What goes wrong in a simulation is warned of, and collected by whoever keeps the run."""

import pytest

from robust_policies.envs import incidents


def test_each_collection_holds_once_what_was_reported_while_it_was_open():
    with incidents.collected() as outer:
        with incidents.collected() as inner, pytest.warns(UserWarning, match="lost"):
            incidents.report("contacts lost")
            incidents.report("contacts lost")
        with pytest.warns(UserWarning, match="other"):
            incidents.report("other")
    with pytest.warns(UserWarning, match="late"):
        incidents.report("late")
    assert (inner, outer) == (["contacts lost"], ["contacts lost", "other"])
