"""Analytic policy gradients: the return differentiated through the plant."""
