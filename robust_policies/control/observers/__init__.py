"""State observers of nonlinear plants, and what is proven of their errors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
