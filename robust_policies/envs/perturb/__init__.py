"""Perturbations of observations, actions and plants, as wrappers of single environments and, in `vector`, of batches.

    env = ObservationDelay(ObservationNoise(env, size=0.05), 2)
    env = perturb(env, "[{ObservationNoise: {size: 0.05}}, {ObservationDelay: 2}]")    # the same, single or vector

The first one listed sits nearest to the plant: observations pass the list forwards, actions backwards.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
