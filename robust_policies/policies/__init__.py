"""Policies: cells inside Stable-Baselines3, and the deployed policy that needs no training library.

Names are imported on first use, so that `load_policy` does not import Stable-Baselines3.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
