"""What is proven of a cell or policy, and how it is checked without trusting how it was built."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
