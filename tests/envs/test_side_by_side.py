"""Gymnasium's pendulums in one call do what they do one after the other."""

from __future__ import annotations

from typing import Any

import gymnasium
import gymnasium.wrappers.common
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from robust_policies.envs.side_by_side import SideBySide

COUNT = 7


@pytest.fixture(autouse=True)
def own_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what RL Zoo does to `gymnasium.make` where another test has imported it."""
    limit = gymnasium.wrappers.common.TimeLimit
    while not limit.__module__.startswith("gymnasium."):
        limit = limit.__mro__[1]
    monkeypatch.setattr(gymnasium.wrappers, "TimeLimit", limit)


def test_the_time_limit_of_others_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(gymnasium.wrappers.common.TimeLimit):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return *rest, {**info, "other": True}

    monkeypatch.setattr(gymnasium.wrappers, "TimeLimit", Other)
    _, together = both()
    together.reset(seed=0)
    assert together.step(np.ones((COUNT, 1), np.float32))[4]["other"].all() and together._arrays is None


def both(**options: Any) -> tuple[SyncVectorEnv, SideBySide]:
    first, second = (
        kind(
            [lambda: gymnasium.make("Pendulum-v1", **options) for _ in range(COUNT)],
            autoreset_mode=AutoresetMode.DISABLED,
        )
        for kind in (SyncVectorEnv, SideBySide)
    )
    assert isinstance(second, SideBySide)
    return first, second


def same(given: tuple[Any, ...], again: tuple[Any, ...]) -> None:
    for one, other in zip(given, again, strict=True):
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            if one.dtype == np.float64:
                np.testing.assert_allclose(other, one, rtol=0, atol=1e-9)
            else:
                np.testing.assert_array_equal(other, one)


def states(env: SyncVectorEnv) -> list[list[float]]:
    return [one.unwrapped.state.tolist() for one in env.envs]  # type: ignore[attr-defined]


def test_pendulums_step_together_as_one_by_one() -> None:
    one, together = both(g=9.81)
    seeds, generator = list(range(COUNT)), np.random.default_rng(0)
    same(one.reset(seed=seeds), together.reset(seed=seeds))
    for t in range(200):
        actions = (2 * generator.normal(size=(COUNT, 1))).astype(np.float32)
        same(one.step(actions), together.step(actions))
        assert together._arrays is not None
        if t == 50:
            # Read and set from outside, they go on from there.
            for env in (one, together):
                env.envs[0].unwrapped.state = np.array([1.0, 0.5])  # type: ignore[attr-defined]
            assert states(one) == states(together)
    mask = np.arange(COUNT) != 2
    same(one.reset(options={"reset_mask": mask}), together.reset(options={"reset_mask": mask}))
    assert states(one) == states(together)


@pytest.mark.parametrize("change", [{"m": 1.5}, {"l": 0.7}])
def test_pendulums_that_differ_step_one_by_one(change: dict[str, float]) -> None:
    one, together = both()
    for env in (one, together):
        env.reset(seed=0)
        for name, value in change.items():
            setattr(env.envs[1].unwrapped, name, value)
    actions = np.ones((COUNT, 1), np.float32)
    for given, again in zip(one.step(actions), together.step(actions), strict=True):
        if isinstance(given, np.ndarray):
            np.testing.assert_array_equal(again, given)
    assert together._arrays is None
