#!/usr/bin/env bash
# skrl 2.1.1: with time_limit_bootstrap, PPO ends an advantage at a time limit and PPO_RNN does not.
#
# At a truncated step both add the discounted value to the reward, which stands for all that would have followed. PPO
# then ends the sum of advantages there. PPO_RNN goes on with the value and the advantage of what comes next in the
# memory, which is the next episode's beginning: the value is counted twice, and rewards of the next episode are put
# down to the last one's actions. Without a policy that has a memory both agents are the same algorithm.
#
# Below a critic that says 1 everywhere, no reward, discount and lambda 0.5, one environment, a time limit at step 1 of 0
# to 3. The return of that step is then 0.5, the discounted value, and no more.
#
# Seen:
#   PPO returns [0.375, 0.5, 0.375, 0.5]
#   PPO_RNN returns [0.4609375, 0.84375, 0.375, 0.5]
#
# Fails (status 1) when both are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q skrl==2.1.1 torch==2.13.0 numpy==2.4.6 gymnasium==1.4.0 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import gymnasium
import numpy
import torch
from skrl.agents.torch.ppo import PPO, PPO_RNN
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

space = gymnasium.spaces.Box(-1.0, 1.0, (1,), numpy.float32)


class Constant(Model):
    def __init__(self):
        Model.__init__(self, observation_space=space, action_space=space, device="cpu")
        self.weight = torch.nn.Parameter(torch.ones(1))

    def compute(self, inputs, role=""):
        return self.weight * torch.ones_like(inputs["observations"]), {"log_std": torch.zeros(1)}


class Policy(GaussianMixin, Constant):
    def __init__(self):
        Constant.__init__(self)
        GaussianMixin.__init__(self)


class Critic(DeterministicMixin, Constant):
    def __init__(self):
        Constant.__init__(self)
        DeterministicMixin.__init__(self)


def returns(kind):
    memory, steps = RandomMemory(memory_size=4, num_envs=1, device="cpu"), 4
    agent = kind(
        models={"policy": Policy(), "value": Critic()}, memory=memory, observation_space=space, action_space=space,
        device="cpu", cfg={
            "rollouts": steps, "learning_epochs": 1, "mini_batches": 1, "discount_factor": 0.5, "gae_lambda": 0.5,
            "time_limit_bootstrap": True, "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
    )
    agent.init()
    agent.enable_training_mode(True)
    zero, no = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)
    for t in range(steps):
        with torch.no_grad():
            actions, _ = agent.act(zero, None, timestep=t, timesteps=steps)
            agent.record_transition(
                observations=zero, states=None, actions=actions, rewards=zero.clone(), next_observations=zero,
                next_states=None, terminated=no, truncated=~no if t == 1 else no, infos={}, timestep=t,
                timesteps=steps,
            )
        agent.post_interaction(timestep=t, timesteps=steps)
    return memory.get_tensor_by_name("returns").flatten().tolist()


found = {kind.__name__: returns(kind) for kind in (PPO, PPO_RNN)}
for name, values in found.items():
    print(name, "returns", values)
raise SystemExit(found["PPO"] == found["PPO_RNN"])
PY
