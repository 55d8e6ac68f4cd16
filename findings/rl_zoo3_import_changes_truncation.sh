#!/usr/bin/env bash
# rl_zoo3 2.9.2 with gymnasium 1.4.0: importing the one changes what environments of the other report at the time limit.
#
# `import rl_zoo3` puts a class of its own in the place of Gymnasium's TimeLimit. In every environment that is made
# afterwards, an episode that terminates in the very step in which its time is up is no longer truncated: Gymnasium says
# terminated and truncated, the other class terminated alone. An environment made before keeps Gymnasium's class, and is
# then no instance of `gymnasium.wrappers.TimeLimit` any more. So one process can hold both kinds, and a comparison of
# flags between a bare environment and one made after the import differs in nothing but the order of imports.
#
# The environment below terminates in its third step and has a limit of three steps.
#
# Seen:
#   before the import: terminated True truncated True
#   after the import: terminated True truncated False
#   the first one is a gymnasium.wrappers.TimeLimit: before True after False
#
# Fails (status 1) when the flags are the same before and after, or the first environment still is an instance.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q rl_zoo3==2.9.2 stable-baselines3==2.9.2 gymnasium==1.4.0 torch==2.13.0 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import gymnasium


class Three(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == 3, False, {}


def flags(environment):
    environment.reset(seed=0)
    for _ in range(3):
        _, _, terminated, truncated, _ = environment.step(0)
    return terminated, truncated


def say(when, pair):
    print(when, "the import: terminated", pair[0], "truncated", pair[1])


gymnasium.register("Three-v0", Three, max_episode_steps=3)
first = gymnasium.make("Three-v0")
before, was = flags(first), isinstance(first, gymnasium.wrappers.TimeLimit)

import rl_zoo3  # noqa: E402, F401

after, remains = flags(gymnasium.make("Three-v0")), isinstance(first, gymnasium.wrappers.TimeLimit)
say("before", before)
say("after", after)
print("the first one is a gymnasium.wrappers.TimeLimit: before", was, "after", remains)
raise SystemExit(0 if before != after and was and not remains else 1)
PY
