"""Policies around a base controller that sees what its observer does not explain."""
