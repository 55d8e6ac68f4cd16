"""Training: recipe -> algorithm -> run folder."""

from robust_policies.train.folder import RunFolder, open_run
from robust_policies.train.imitation import imitate
from robust_policies.train.recipe import Recipe, load_recipe, parse_recipe
from robust_policies.train.runner import TrainingInterruptedError, TrainResult, train
from robust_policies.train.tensor_ppo import TensorRecurrentPPO

__all__ = [
    "Recipe",
    "RunFolder",
    "TensorRecurrentPPO",
    "TrainResult",
    "TrainingInterruptedError",
    "imitate",
    "load_recipe",
    "open_run",
    "parse_recipe",
    "train",
]
