#!/usr/bin/env bash
# skrl 2.1.1: PPO_RNN stores with each step the policy's recurrent state after it, not the one it was chosen from.
#
# After the first step `_rnn_initial_states` and `_rnn_final_states` of the agent are one dictionary. `act` writes the new
# state of the policy into it, and `record_transition` then stores that as the state of the step. The critic's state is
# written later and is stored as it should be. In an update every training sequence begins from the stored state, so the
# policy reads its first observation twice: its log-probabilities differ from those of the rollout before any weight has
# changed, and PPO's first ratio is not 1.
#
# The models below count their calls in their state. The state before step t is t, for policy and critic alike.
#
# Seen:
#   policy [0.0, 2.0, 3.0, 4.0, 5.0, 6.0]
#   critic [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
#
# Fails (status 1) when the policy's states are 0, 1, 2, ... too, or the critic's are not.
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
from skrl.agents.torch.ppo import PPO_RNN
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

space = gymnasium.spaces.Box(-1.0, 1.0, (1,), numpy.float32)


class Counter(Model):
    def __init__(self):
        Model.__init__(self, observation_space=space, action_space=space, device="cpu")
        self.weight = torch.nn.Parameter(torch.ones(1))

    def get_specification(self):
        return {"rnn": {"sequence_length": 2, "sizes": [(1, 1, 1)]}}

    def compute(self, inputs, role=""):
        following = inputs["rnn"][0] + 1
        return self.weight * inputs["observations"], {"log_std": torch.zeros(1), "rnn": [following]}


class Policy(GaussianMixin, Counter):
    def __init__(self):
        Counter.__init__(self)
        GaussianMixin.__init__(self)


class Critic(DeterministicMixin, Counter):
    def __init__(self):
        Counter.__init__(self)
        DeterministicMixin.__init__(self)


memory, steps = RandomMemory(memory_size=6, num_envs=1, device="cpu"), 6
quiet = {"rollouts": 100, "experiment": {"write_interval": 0, "checkpoint_interval": 0}}
agent = PPO_RNN(
    models={"policy": Policy(), "value": Critic()}, memory=memory, observation_space=space, action_space=space,
    device="cpu", cfg=quiet,
)
agent.init()
agent.enable_training_mode(True)
zero, no = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)
with torch.no_grad():
    for t in range(steps):
        actions, _ = agent.act(zero, None, timestep=t, timesteps=steps)
        agent.record_transition(
            observations=zero, states=None, actions=actions, rewards=zero.clone(), next_observations=zero,
            next_states=None, terminated=no, truncated=no, infos={}, timestep=t, timesteps=steps,
        )
policy, critic = (memory.get_tensor_by_name(f"rnn_{name}_0").flatten().tolist() for name in ("policy", "value"))
print(f"policy {policy}\ncritic {critic}")
wanted = [float(t) for t in range(steps)]
raise SystemExit(not (policy != wanted and critic == wanted))
PY
