"""Malformed recipes, task folders, policy files, run folders and command lines, made from a seed and a number."""

import random
from pathlib import Path

from malformed_base import Case
from malformed_lines import options
from malformed_policies import certificate, description, run_folder, weights
from malformed_recipes import recipe
from malformed_tasks import task

MAKERS = (recipe, task, weights, description, run_folder, options, recipe, task, certificate, options)


def make(seed: int, number: int, base: Path) -> Case:
    """Return a case: the same for the same numbers. `base` is a run folder that is right."""
    random_ = random.Random(f"{seed} {number}")
    maker = MAKERS[number % len(MAKERS)]
    return maker(random_, base)
