"""Cells as models of other training libraries, which are imported when their model is first used.

The environments they learn in are in `robust_policies.envs.bridges`; what they learned is deployed by `save_policy`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
