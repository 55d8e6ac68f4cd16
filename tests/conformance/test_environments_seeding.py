"""Seeds of every vectorized environment: numbers, lists, gaps, masks, and the generators they stand for."""

import numpy as np
import pytest
import torch
from env_cases import close, every_kind, every_mode, ours, still_action, theirs


def path(env, **reset):
    """Return what a reset and two steps at rest show: enough for the start state or the noise to tell seeds apart."""
    seen = [np.asarray(env.reset(**reset)[0])]
    still = np.stack([still_action(env.single_action_space)] * env.num_envs)
    return np.concatenate([*seen, *(np.asarray(env.step(still)[0]) for _ in range(2))], axis=-1)


@every_kind
@every_mode
def test_every_way_to_seed_is_gymnasiums(env_id, mode):
    mine, oracle = ours(env_id, mode), theirs(env_id, mode)
    for seed in (42, None, [7, 3, 9], [None, 11, None], [4, None, 5]):
        close(path(mine, seed=seed), path(oracle, seed=seed))
        assert mine.np_random_seed == oracle.np_random_seed
        for own, other in zip(mine.np_random, oracle.np_random, strict=True):
            assert own.bit_generator.state == other.bit_generator.state


@every_kind
@every_mode
def test_a_mask_seeds_and_resets_only_what_it_marks(env_id, mode):
    env = ours(env_id, mode)
    still = np.stack([still_action(env.single_action_space)] * 3)
    for kind in (np.asarray, torch.as_tensor):
        start, _ = env.reset(seed=[0, 1, 2])
        for _ in range(2):
            before, *_ = env.step(still)
        mask = kind(np.array([True, True, False]))
        options = {"reset_mask": mask}
        after, info = env.reset(seed=[0, 1, 0], options=options)
        assert torch.equal(after[:2], start[:2]) and torch.equal(after[2], before[2]) and info == {}
        assert list(options) == ["reset_mask"] and options["reset_mask"] is mask
        assert env.np_random_seed == (0, 1, 2) and env.elapsed.tolist() == [0, 0, 2]
        mask = kind(np.array([False, False, True]))
        assert torch.equal(env.reset(seed=5, options={"reset_mask": mask})[0][:2], start[:2])
        assert env.np_random_seed == (0, 1, 7)


@every_kind
def test_unseeded_environments_differ_and_say_how_they_were_seeded(env_id):
    first, second = ours(env_id), ours(env_id)
    seeds = first.np_random_seed
    assert len(set(seeds)) == 3 and set(seeds).isdisjoint(second.np_random_seed)
    seen = path(first)
    assert not np.array_equal(seen, path(second)) and first.np_random_seed == seeds
    assert np.array_equal(seen, path(second, seed=list(seeds)))


@every_kind
def test_seeds_of_neighbours_do_not_matter(env_id):
    small, large = ours(env_id, count=2), ours(env_id, count=5)
    close(path(small, seed=[7, 9]), path(large, seed=[1, 9, 2, 7, 3])[[3, 1]])


@every_kind
def test_the_action_space_samples_what_gymnasiums_does(env_id):
    mine, oracle = ours(env_id), theirs(env_id)
    mine.action_space.seed(5)
    oracle.action_space.seed(5)
    for _ in range(5):
        assert np.array_equal(mine.action_space.sample(), oracle.action_space.sample())


@every_kind
def test_bad_masks_are_refused_and_nothing_changes(env_id):
    env = ours(env_id)
    env.reset(seed=0)
    held = [env.state, env.elapsed, env._streams.state.clone()]
    bad = [np.ones(1, bool), np.ones(4, bool), np.ones((1, 3), bool), np.zeros(3, bool), np.array([1, 1, 0])]
    for mask in (*bad, np.array([1.0, 1.0, 0.0]), [True, True, False], torch.ones(3)):
        with pytest.raises(ValueError, match=r"reset_mask.*expected"):
            env.reset(seed=1, options={"reset_mask": mask})
        now = [env.state, env.elapsed, env._streams.state]
        assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True)) and env.np_random_seed == (0, 1, 2)
