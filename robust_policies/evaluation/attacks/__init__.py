"""Attacks on observations: every search stays within a stated budget, batched over episodes and sizes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
