"""Tasks as Gymnasium environments: vectorized on a device, single ones in numpy, and a bridge to Stable-Baselines3.

Importing it registers the ids with Gymnasium and loads no torch; each name loads its module when it is used.
"""

import lazy_loader

from robust_policies.envs.registration import register_tasks

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_tasks()
