import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from policy_models import SMALL, ShortEpisodes, randomize, short_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NonFiniteError,
    SchemaError,
    ShapeError,
    UnknownNameError,
)
from robust_policies.policies import load_policy, save_policy

SPACES = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1.0, 0.25, (2, 2))]


@pytest.fixture
def saved(tmp_path):
    randomize(model := short_model(action_scale=2.0, cell_output_size=3, observation_scale=[1.0, 2.0, 3.0]).policy)
    save_policy(model, tmp_path)
    return tmp_path


def assert_same_predictions(ours, model, normalise=lambda x: x, count=4):
    rng = np.random.default_rng(0)
    state = sb3_state = None
    for _ in range(15):
        observations = rng.normal(size=(count, 3)).astype(np.float32)
        starts = rng.random(count) < 0.3
        for deterministic in (False, True):
            torch.manual_seed(3)
            a, next_state = ours.predict(observations, state, starts, deterministic=deterministic)
            torch.manual_seed(3)
            b, next_sb3 = model.predict(normalise(observations), sb3_state, starts, deterministic=deterministic)
            np.testing.assert_array_equal(a, b)
            assert a.shape == b.shape
        state, sb3_state = next_state, next_sb3


@pytest.mark.parametrize("cell", sorted(SMALL))
def test_the_loaded_pair_acts_exactly_as_the_policy_in_sb3(cell, tmp_path):
    model = short_model(cell).learn(72)
    randomize(model.policy, 0.3)
    assert save_policy(model, tmp_path) == tmp_path / "policy.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    for path in (tmp_path, tmp_path / "policy.json", tmp_path / "policy.safetensors"):
        assert_same_predictions(load_policy(path), model)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_every_action_space_is_stored(space, tmp_path):
    model = short_model(env=make_vec_env(lambda: ShortEpisodes(space), 2), cell_output_size=5)
    randomize(model.policy)
    save_policy(model, tmp_path)
    policy = load_policy(tmp_path)
    assert policy.action_space == space
    assert_same_predictions(policy, model)
    single, state = policy.predict(np.zeros(3))
    reference, _ = model.predict(np.zeros(3, np.float32), deterministic=True)
    assert np.shape(single) == np.shape(reference) and state.shape == (1, 4)


def test_frozen_normalisation_is_part_of_the_pair(tmp_path):
    env = VecNormalize(make_vec_env(ShortEpisodes, 2, seed=0), clip_obs=1.0)
    model = short_model(env=env).learn(100)
    randomize(model.policy)
    save_policy(model, tmp_path)
    assert_same_predictions(load_policy(tmp_path), model, normalise=env.normalize_obs)


def test_a_named_pair_and_overwriting_it(tmp_path, saved):
    path = save_policy(load_policy(saved), tmp_path / "best.json")
    assert path.name == "best.json" and path.with_suffix(".safetensors").is_file()
    save_policy(randomize(short_model("gru").policy), path)
    assert load_policy(path).cell.name == "gru"


def test_a_failed_save_leaves_the_old_pair(saved):
    policy = short_model().policy
    with torch.no_grad():
        next(policy.lstm_actor.parameters()).fill_(float("nan"))
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(NonFiniteError):
        save_policy(policy, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_loading_imports_no_training_library(saved):
    code = (
        "import sys, numpy; from robust_policies.policies import load_policy\n"
        f"load_policy({str(saved)!r}).predict(numpy.zeros(3))\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('stable_baselines3', 'sb3_contrib', 'tensorboard')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


def rewrite(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_weights(folder, change):
    tensors = safetensors.torch.load_file(folder / "policy.safetensors")
    change(tensors)
    data = safetensors.torch.save(tensors)
    (folder / "policy.safetensors").write_bytes(data)
    rewrite(folder, weights={"file": "policy.safetensors", "sha256": hashlib.sha256(data).hexdigest()})


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(MissingFileError, match=r"policy\.json"):
        load_policy(tmp_path / "nowhere")
    (saved / "policy.safetensors").unlink()
    with pytest.raises(MissingFileError, match="safetensors"):
        load_policy(saved)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"schema": 2}, SchemaError),
        ({"schema": None}, CorruptFileError),
        ({"type": "os.system"}, UnknownNameError),
        ({"cell": {"type": "builtins.eval"}}, UnknownNameError),
        ({"cell": {"type": "gru", "input_size": -3, "state_size": 3, "output_size": 3}}, InvalidValueError),
        ({"cell": {"type": "gru", "input_size": 7, "state_size": 3, "output_size": 3}}, ShapeError),
        ({"cell": {"type": "gru", "input_size": 3, "state_size": 3, "output_size": 3}}, CorruptFileError),
        ({"dtype": "float8"}, UnknownNameError),
        ({"weights": None}, CorruptFileError),
        ({"action_space": {"type": "Eval"}}, UnknownNameError),
        ({"action_space": {"type": "Box", "low": [0.0]}}, CorruptFileError),
        ({"action_space": 3}, CorruptFileError),
    ],
)
def test_a_wrong_json_is_refused_with_its_cause(saved, changes, error):
    rewrite(saved, **changes)
    with pytest.raises(error):
        load_policy(saved)


def test_a_json_without_an_entry_or_not_json_is_refused(saved):
    path = saved / "policy.json"
    content = json.loads(path.read_text())
    for key in content:
        path.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        # Without the arrays of `robust_policies.runtime`, as older files are, it is the same policy.
        if key in ("version", "runtime"):
            load_policy(saved)
            continue
        with pytest.raises((CorruptFileError, UnknownNameError)):
            load_policy(saved)
    path.write_text(path.read_text()[:20])
    with pytest.raises(CorruptFileError):
        load_policy(saved)


def test_corrupt_weights_are_refused_with_their_cause(saved):
    path = saved / "policy.safetensors"
    good = path.read_bytes()
    for data in (good[: len(good) // 2], b"", b"\xff" * 64, good[:-4] + b"abcd"):
        path.write_bytes(data)
        with pytest.raises(CorruptFileError):
            load_policy(saved)
    path.write_bytes(good)
    name = "head.linear.weight"
    rewrite_weights(saved, lambda tensors: tensors.pop(name))
    with pytest.raises(CorruptFileError, match=name):
        load_policy(saved)
    rewrite_weights(saved, lambda tensors: tensors.update({name: torch.zeros(2, 3), "more": torch.zeros(1)}))
    with pytest.raises(CorruptFileError, match="more"):
        load_policy(saved)
    rewrite_weights(saved, lambda tensors: tensors.pop("more"))
    load_policy(saved)
    rewrite_weights(saved, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ShapeError, match=name):
        load_policy(saved)
    rewrite_weights(saved, lambda tensors: tensors.update({name: torch.full((2, 3), float("nan"))}))
    with pytest.raises(NonFiniteError, match=name):
        load_policy(saved)


def test_a_zip_is_read_only_when_pickle_is_allowed(tmp_path):
    model = short_model().learn(72)
    model.save(tmp_path / "policy.zip")
    with pytest.raises(InvalidValueError, match="allow_pickle"):
        load_policy(tmp_path / "policy.zip")
    with pytest.raises(MissingFileError, match="allow_pickle"):
        load_policy(tmp_path)
    assert_same_predictions(load_policy(tmp_path / "policy.zip", allow_pickle=True), model)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(CorruptFileError):
        load_policy(tmp_path / "bad.zip", allow_pickle=True)


def test_predict_refuses_what_does_not_fit(saved):
    policy = load_policy(saved)
    for wrong in (np.zeros(2), np.zeros((2, 4)), np.zeros((1, 2, 3)), np.zeros((0, 3)), "text", None, {"a": 1}):
        with pytest.raises(ShapeError):
            policy.predict(wrong)
    with pytest.raises(NonFiniteError, match="NaN"):
        policy.predict([0.0, np.nan, 0.0])
    with pytest.raises(ShapeError, match="state"):
        policy.predict(np.zeros((2, 3)), policy.initial_state(3))
    with pytest.raises(ShapeError, match="episode_start"):
        policy.predict(np.zeros((2, 3)), None, np.zeros(3, bool))


def test_episode_start_resets_only_that_entry(saved):
    policy = load_policy(saved)
    rng = np.random.default_rng(1)
    state = None
    for _ in range(4):
        _, state = policy.predict(rng.normal(size=(2, 3)), state)
    observation = rng.normal(size=(2, 3))
    _, reset = policy.predict(observation, state, np.array([True, False]))
    _, kept = policy.predict(observation, state)
    _, first = policy.predict(observation)
    np.testing.assert_allclose(reset[0], first[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(reset[1], kept[1], rtol=0, atol=1e-6)
    assert not np.allclose(kept[0], first[0])


def test_gradients_flow_through_the_deployed_actor(saved):
    observations = torch.randn(6, 2, 3, requires_grad=True)
    actions, state = load_policy(saved).actor(observations)
    actions[-1].sum().backward()
    assert actions.shape == (6, 2, 2) and state.shape == (2, 4)
    assert float(observations.grad[0].abs().max()) > 0
