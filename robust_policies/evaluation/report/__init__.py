"""The report: run folders in, one self-contained page and a set of pictures out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
