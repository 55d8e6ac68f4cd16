"""What is run on a card that is none, and on a real one: cells, policies, trainings of small sizes."""

import gymnasium
import torch

from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.networks import make_cell
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.train import TensorRecurrentPPO

CELLS = {
    "r2dn": {"state_size": 4, "features": 3, "hidden_sizes": (5, 4), "gamma": 3.0},
    "ren": {"state_size": 4, "features": 5, "gamma": 3.0},
    "nemon": {"state_size": 4, "features": 5, "gamma": 3.0},
    "l2ru": {"state_size": 4, "features": 5, "gamma": 3.0},
    "convex": {"state_size": 4, "gamma": 3.0},
    "lipschitz_rnn": {"state_size": 4},
    "lstm": {"state_size": 4},
    "gru": {"state_size": 4},
    "mlp": {"hidden_sizes": (5,)},
    "lbdn": {"hidden_sizes": (5, 4), "gamma": 3.0},
}


def build_cell(name, inputs=3, outputs=2):
    torch.manual_seed(0)
    return make_cell(name, inputs, outputs, **CELLS[name])


def there(tensor):
    """Return the numbers of a tensor that has to be on the card."""
    assert tensor.is_cuda
    return tensor.detach().held


def name_of(kind):
    return gymnasium.spec(f"robust_policies/{kind}-v0").kwargs["task"]


def actor_of(plant, scale=None):
    cell = build_cell("r2dn", plant.observation_size, plant.action_size)
    head = MeanHead(plant.action_size, plant.action_size, False, scale)
    return Actor(ScaledCell(cell, Scaling(plant.observation_size)), head)


def ppo(device, task="pendulum", cell="r2dn", critic="mlp", **options):
    env = SB3VecEnv(TorchVectorEnv(task, 6, max_episode_steps=7, device=device))
    env.seed(3)
    kwargs = {"cell": cell, "cell_kwargs": CELLS[cell], "critic": critic, "zero_init": False}
    settings = {"n_steps": 20, "batch_size": 60, "n_epochs": 2, "gamma": 0.95, "learning_rate": 1e-3, "seed": 0}
    settings |= {"graphs": "never"}
    return TensorRecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=kwargs, device=device, **(settings | options))
