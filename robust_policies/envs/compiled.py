"""The step of a plant as one compiled function: fused kernels on the CPU, a CUDA graph on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from robust_policies.envs.gradient import Transition, transition
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError

Step = Callable[..., Transition]


def transition_of(plant: Plant, compile: bool, device: torch.device) -> Step:
    """Return the function (state, action, params, process, measurement, disturbance) -> `Transition` of a plant.

    With `compile` it goes through `torch.compile` once for each set of shapes (tens of seconds at the first step; a C++
    compiler is needed on the CPU); on a GPU its kernels are replayed as one CUDA graph. The results are the same to the
    rounding of fused floating-point operations.
    """
    if not isinstance(compile, bool):
        raise InvalidValueError(f"compile is {compile!r}; expected True or False.")

    def step(*given: Any) -> Transition:
        return transition(plant, *given)

    if not compile:
        return step
    if not plant.differentiable:
        raise InvalidValueError(f"compile=True was given for a {plant.kind} task, whose physics is not torch's; leave "
                                "it out (on a GPU MuJoCo-Warp replays a CUDA graph anyway).")  # fmt: skip
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)
    warm = False

    def compiled_after_a_plain_step(*given: Any) -> Transition:
        nonlocal warm
        if not warm:
            # Constants that a plant keeps per device and dtype are made here, outside the compiled graph.
            step(*given)
            warm = True
        return compiled(*given)

    return compiled_after_a_plain_step
