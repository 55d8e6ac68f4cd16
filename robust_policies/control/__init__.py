"""Formulas for linear plants: the Youla parametrization and its bounds."""
