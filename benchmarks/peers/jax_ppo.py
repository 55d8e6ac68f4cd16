"""PPO with a GRU in JAX, one `jit` around collecting, advantages and all epochs of many updates: a yardstick of speed.

    OMP_NUM_THREADS=1 python benchmarks/peers/jax_ppo.py [--updates 8]

Pendulum with Gymnasium's equations, 128 environments x 64 steps, ten epochs of minibatches of 2,048 (whole sequences of
32 environments), a GRU of 16 units with a linear head as actor, an MLP 2x64 as critic, Adam, clipped gradients and
ratios. Needs jax and optax: `pip install 'robust-policies[peers]'`.

It compiles first and says how long that took, in CPU seconds; then it trains `updates` updates for every line that it
reads and answers with one line of JSON: CPU seconds, environment steps, updates so far and the mean return of the
episodes that ended in this round. The end of its input ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, NamedTuple

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import optax  # pyright: ignore[reportMissingImports]

ENVS, STEPS, EPOCHS, MINIBATCH = 128, 64, 10, 2048
UNITS, WIDTH, LIMIT = 16, 64, 200
RATE, DISCOUNT, LAMBDA, CLIP, VALUE, NORM = 1e-3, 0.9, 0.95, 0.2, 0.5, 0.5
OPTIMIZER = optax.chain(optax.clip_by_global_norm(NORM), optax.adam(RATE, eps=1e-5))


class Env(NamedTuple):
    """State of the environments: angle and speed (ENVS,), steps and return of the episode so far."""

    angle: jax.Array
    speed: jax.Array
    elapsed: jax.Array
    total: jax.Array


class Batch(NamedTuple):
    """A rollout, (STEPS, ENVS, ...)."""

    observation: jax.Array
    start: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array


def dense(key: jax.Array, inputs: int, outputs: int, scale: float = 1.0) -> dict[str, jax.Array]:
    weight = scale * jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)
    return {"w": weight, "b": jnp.zeros(outputs)}


def affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def parameters(key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 6)
    return {
        "inward": dense(keys[0], 3, 3 * UNITS),
        "memory": dense(keys[1], UNITS, 3 * UNITS),
        "head": dense(keys[2], UNITS, 1, 0.01),
        "log_std": jnp.zeros(1),
        "critic": [dense(keys[3], 3, WIDTH), dense(keys[4], WIDTH, WIDTH), dense(keys[5], WIDTH, 1)],
    }


def gru(params: dict[str, Any], observation: jax.Array, hidden: jax.Array) -> jax.Array:
    x, h = affine(params["inward"], observation), affine(params["memory"], hidden)
    reset, update = (jax.nn.sigmoid(x[..., k : k + UNITS] + h[..., k : k + UNITS]) for k in (0, UNITS))
    candidate = jnp.tanh(x[..., 2 * UNITS :] + reset * h[..., 2 * UNITS :])
    return (1.0 - update) * candidate + update * hidden


def value(params: dict[str, Any], observation: jax.Array) -> jax.Array:
    x = observation
    for layer in params["critic"][:-1]:
        x = jnp.tanh(affine(layer, x))
    return affine(params["critic"][-1], x)[..., 0]


def log_prob(params: dict[str, Any], mean: jax.Array, action: jax.Array) -> jax.Array:
    std = jnp.exp(params["log_std"])
    return (-0.5 * jnp.square((action - mean) / std) - params["log_std"] - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


def begin(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    angle, speed = jax.random.uniform(key, (2, ENVS), minval=-1.0)
    return jnp.pi * angle, speed


def observe(env: Env) -> jax.Array:
    return jnp.stack((jnp.cos(env.angle), jnp.sin(env.angle), env.speed), -1)


def step(env: Env, action: jax.Array, key: jax.Array) -> tuple[Env, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return what follows, the reward, which episodes ended, what was seen at their ends and their returns."""
    torque = jnp.clip(action[:, 0], -2.0, 2.0)
    wrapped = jnp.mod(env.angle + jnp.pi, 2 * jnp.pi) - jnp.pi
    reward = -(wrapped**2 + 0.1 * env.speed**2 + 0.001 * torque**2)
    speed = jnp.clip(env.speed + (15.0 * jnp.sin(env.angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
    after = Env(env.angle + 0.05 * speed, speed, env.elapsed + 1, env.total + reward)
    done, (angle, speed) = after.elapsed >= LIMIT, begin(key)
    fresh = Env(angle, speed, jnp.zeros_like(env.elapsed), jnp.zeros_like(env.total))
    return jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, after), reward, done, observe(after), after.total


def collect(params: Any, env: Env, hidden: jax.Array, start: jax.Array, key: jax.Array) -> Any:
    def one(carry: Any, key: jax.Array) -> Any:
        env, hidden, start = carry
        noise, again = jax.random.split(key)
        observation = observe(env)
        hidden = gru(params, observation, jnp.where(start[:, None], 0.0, hidden))
        mean = affine(params["head"], hidden)
        action = mean + jnp.exp(params["log_std"]) * jax.random.normal(noise, mean.shape)
        following, reward, done, last, total = step(env, action, again)
        # An episode that the time limit cuts off would have gone on.
        reward = reward + jnp.where(done, DISCOUNT * value(params, last), 0.0)
        kept = Batch(observation, start, action, log_prob(params, mean, action), value(params, observation), reward)
        return (following, hidden, done), (kept, jnp.where(done, total, 0.0), done)

    return jax.lax.scan(one, (env, hidden, start), jax.random.split(key, STEPS))


def advantages(batch: Batch, last: jax.Array, start: jax.Array) -> jax.Array:
    def one(carry: Any, now: Any) -> Any:
        advantage, following, ended = carry
        reward, known, began = now
        keep = DISCOUNT * (1.0 - ended)
        advantage = reward + keep * following - known + keep * LAMBDA * advantage
        return (advantage, known, began.astype(jnp.float32)), advantage

    first = (jnp.zeros(ENVS), last, start.astype(jnp.float32))
    return jax.lax.scan(one, first, (batch.reward, batch.value, batch.start), reverse=True)[1]


def loss(params: Any, batch: Batch, hidden: jax.Array, advantage: jax.Array, target: jax.Array) -> jax.Array:
    def one(hidden: jax.Array, now: Any) -> Any:
        observation, start = now
        hidden = gru(params, observation, jnp.where(start[:, None], 0.0, hidden))
        return hidden, hidden

    _, states = jax.lax.scan(one, hidden, (batch.observation, batch.start))
    ratio = jnp.exp(log_prob(params, affine(params["head"], states), batch.action) - batch.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gained = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * advantage)
    return -gained.mean() + VALUE * jnp.square(value(params, batch.observation) - target).mean()


def update(carry: Any, _: Any) -> Any:
    params, optimizer, env, hidden, start, key = carry
    key, drawn, order = jax.random.split(key, 3)
    (env, after, began), (batch, returns, done) = collect(params, env, hidden, start, drawn)
    advantage = advantages(batch, value(params, observe(env)), began)
    target, width = advantage + batch.value, MINIBATCH // STEPS

    def epoch(carry: Any, key: jax.Array) -> Any:
        def minibatch(carry: Any, rows: jax.Array) -> Any:
            params, optimizer = carry
            part = jax.tree.map(lambda x: x[:, rows], batch)
            slopes = jax.grad(loss)(params, part, hidden[rows], advantage[:, rows], target[:, rows])
            change, optimizer = OPTIMIZER.update(slopes, optimizer, params)
            return (optax.apply_updates(params, change), optimizer), None

        rows = jax.random.permutation(key, ENVS).reshape(-1, width)
        return jax.lax.scan(minibatch, carry, rows)[0], None

    (params, optimizer), _ = jax.lax.scan(epoch, (params, optimizer), jax.random.split(order, EPOCHS))
    return (params, optimizer, env, after, began, key), (returns.sum(), done.sum())


def initial(seed: int) -> Any:
    """Return the state of a training; the ends of the episodes are spread over time."""
    key, weights, start, spread = jax.random.split(jax.random.PRNGKey(seed), 4)
    params, (angle, speed) = parameters(weights), begin(start)
    env = Env(angle, speed, jax.random.randint(spread, (ENVS,), 0, LIMIT), jnp.zeros(ENVS))
    return params, OPTIMIZER.init(params), env, jnp.zeros((ENVS, UNITS)), jnp.ones(ENVS, bool), key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=8, help="in each round")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    state, done = initial(given.seed), 0
    began = time.process_time()
    train = jax.jit(lambda state: jax.lax.scan(update, state, None, length=given.updates)).lower(state).compile()
    versions = {"jax": jax.__version__, "optax": optax.__version__}
    print(json.dumps({"compile_cpu_s": time.process_time() - began, **versions}), flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        state, (returns, ended) = train(state)
        total, count = float(returns.sum()), int(ended.sum())
        done += given.updates
        seconds, steps = time.process_time() - began, given.updates * ENVS * STEPS
        mean = total / count if count else None
        print(json.dumps({"cpu_s": seconds, "steps": steps, "updates": done, "mean_return": mean}), flush=True)


if __name__ == "__main__":
    main()
