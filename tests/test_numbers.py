"""How numbers are printed: one rounding, bounds to their safe side, rates that never become 1."""

import pytest

from robust_policies.files import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8427976, "0.8428"), (-1016.34, "-1016"), (224461.2, "224500"), (0.0, "0"), (0.3, "0.3"), (3e-7, "3e-07"),
        (2.5e10, "2.5e+10"), (499.5, "499.5"),
    ],
)  # fmt: skip
def test_a_number_has_four_digits_and_no_powers_of_ten_in_the_middle(value, text):
    assert numbers.shown(value) == text


def test_bounds_are_rounded_to_their_safe_side():
    assert (numbers.upper(0.84271), numbers.lower(0.84279)) == ("0.8428", "0.8427")
    assert (numbers.upper(3.0), numbers.lower(3.0)) == ("3", "3")
    assert (numbers.lower(-2.50001), numbers.lower(2.50099), numbers.lower(0.0)) == ("-2.501", "2.5", "0")
    for value in (1.0, 4.9999999, 5.00000001, 123456.7, 3e-7):
        assert float(numbers.lower(value)) <= value * (1 + 1e-8) and value <= float(numbers.upper(value)) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("value", "text"), [(0.98573974, "0.98574"), (0.999999, "0.999999"), (0.25, "0.25"), (1.0, "1")]
)
def test_a_rate_below_one_is_never_printed_as_one(value, text):
    assert numbers.rate(value) == text
    assert float(numbers.rate(1 - 1.23456e-9)) < 1 and float(numbers.rate(0.98573974)) >= 0.98573974
