"""Thin adapters to other reinforcement-learning libraries, which are imported when their adapter is first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
