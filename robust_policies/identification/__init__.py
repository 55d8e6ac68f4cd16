"""Models from measured records: contracting or of bounded gain, with a certificate, a baseline and a report."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
