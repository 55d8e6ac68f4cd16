"""Functional mock-up units (FMI 2 and 3, co-simulation) as environments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
