"""Training into a run folder: its files, its scalars, and a run that is stopped and continued."""

import json

import numpy as np
import pytest
import torch
from event_files import scalars
from soak_cases import some_soak
from tiny_recipe import TINY

from robust_policies.envs import incidents
from robust_policies.errors import DeviceError, InvalidValueError, SchemaError, UnknownNameError
from robust_policies.policies import load_policy
from robust_policies.train import RunFolder, load_recipe, open_run, train
from robust_policies.train.environment import make_env
from robust_policies.train.ppo.continuation import load_model
from robust_policies.train.ppo.run import make_model
from robust_policies.train.run.checkpoints import checkpoints_in, newest_state


def test_a_run_folder_has_its_files_and_sb3s_scalars(tiny, finished_once):
    result = finished_once
    run = open_run(result.folder)
    assert result.num_timesteps == 1600
    for path in (run.recipe, run.policy_zip, run.policy_json, run.policy_safetensors, run.provenance):
        assert path.is_file(), path
    assert run.read_recipe() == tiny
    provenance = run.read_provenance()
    assert provenance["seed"] == tiny.seed
    assert provenance["num_timesteps"] == 1600
    assert provenance["versions"]["torch"] and provenance["incidents"] == []
    tags = scalars(run)
    for tag in ("rollout/ep_rew_mean", "rollout/ep_len_mean", "train/loss", "train/approx_kl", "train/value_loss",
                "train/std", "time/fps", "eval/mean_reward", "eval/mean_ep_length"):  # fmt: skip
        assert tags[tag], tag
    assert [step for step, _ in tags["eval/mean_reward"]] == [800, 1600]
    assert result.best_reward == pytest.approx(max(value for _, value in tags["eval/mean_reward"]), rel=1e-5)


def test_what_went_wrong_in_the_simulation_marks_the_run(tiny, tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.reserved(tiny, resume=False), pytest.warns(UserWarning, match="no room"):
        incidents.report("no room for contacts")
    run.write_provenance()
    assert run.read_provenance()["incidents"] == ["no room for contacts"]


def test_the_kept_policy_is_the_best_one(finished_once):
    run = RunFolder(finished_once.folder)
    observation = np.array([[0.5, 0.8, 1.0]], dtype=np.float32)
    kept, _ = load_policy(run.path).predict(observation)
    best, _ = load_policy(run.checkpoints / "best").predict(observation)
    assert np.array_equal(kept, best)


@pytest.mark.parametrize("algorithm", some_soak(["tensor_ppo", "apg"], "tensor_ppo"))
def test_the_policy_of_every_evaluation_is_kept_if_asked_for(algorithm, tmp_path):
    changes = ["algorithm.total_steps=1600", "checkpoints.evaluate_every=800", "checkpoints.evaluate_episodes=2",
               "task.num_envs=4", "checkpoints.policies=true", "checkpoints.keep=last"]  # fmt: skip
    name, own = (
        ("pendulum_r2dn_apg", ["algorithm.horizon=20"]) if algorithm == "apg" else ("pendulum_r2dn_gamma6", TINY)
    )
    train(load_recipe(name, [*own, *changes]), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    steps = [step for step, _, _ in run.read_provenance()["evaluations"]]
    assert [run.policy_at(step) for step in steps] == checkpoints_in(run.checkpoints / "policies")
    observation = np.array([[0.5, 0.8, 1.0]], dtype=np.float32)
    found = [
        load_policy(path).predict(observation)[0] for path in (run.policy_at(steps[0]), run.policy_at(1600), run.path)
    ]
    assert np.array_equal(found[1], found[2])
    assert not np.array_equal(found[0], found[1])


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, "algorithm.total_steps=400"], seed=seed)
        train(recipe, tmp_path / name)
    weights = [(tmp_path / name / "policy.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_an_interrupted_run_is_continued_to_its_end(tiny, stopped):
    run = RunFolder(stopped)
    assert not run.policy_json.exists()
    assert checkpoints_in(run.checkpoints)[-1].name == "step_000000000800"
    result = train(tiny, stopped, resume=True)
    assert result.num_timesteps == 1600
    assert open_run(run.path).policy_json.is_file()
    steps = [step for step, _ in scalars(run)["time/fps"]]
    assert max(steps) == 1600


def test_a_continued_run_starts_from_the_weights_and_optimizer_of_the_checkpoint(tiny, stopped):
    env = make_env(tiny, 4, 0, "cpu", training=True)
    model = make_model(tiny, env)
    found = newest_state(RunFolder(stopped).checkpoints)
    load_model(model, found.tensors, found.facts, found.progress)
    progress = found.progress
    assert (progress.num_timesteps, model.num_timesteps, model._n_updates) == (800, 800, 4)
    assert model.policy.optimizer.state_dict()["state"]
    assert model.get_vec_normalize_env().ret_rms.count > 700


def test_a_finished_run_is_left_as_it_is_by_resume(tiny, finished):
    before = (finished / "policy.safetensors").read_bytes()
    assert train(tiny, finished, resume=True).num_timesteps == 1600
    assert (finished / "policy.safetensors").read_bytes() == before


def test_a_folder_in_use_or_of_another_recipe_is_refused(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidValueError, match="not empty; add --resume"):
        train(tiny, tmp_path / "run")
    with pytest.raises(InvalidValueError, match=r"no recipe\.yaml"):
        train(tiny, tmp_path / "run", resume=True)
    (tmp_path / "run" / "recipe.yaml").write_text(
        load_recipe("pendulum_r2dn_gamma6", [*TINY, "policy.gamma=3"]).to_yaml()
    )
    with pytest.raises(InvalidValueError, match=r"policy\.gamma was 3\.0 and is now 6\.0"):
        train(tiny, tmp_path / "run", resume=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["notes.txt", "recipe.yaml"]


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["task.id=Pendulm-v1"], UnknownNameError, "Did you mean 'Pendulum-v1'"),
        (["policy.cell=r2dm"], UnknownNameError, "Did you mean 'r2dn'"),
        (["policy.activation=gelu"], InvalidValueError, "relu"),
        (["task.kwargs.foo=1"], InvalidValueError, "does not take the options {.*'foo': 1}"),
        (["evaluation.tasks=[Pendulm-v1]"], UnknownNameError, "Did you mean 'Pendulum-v1'"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_written(overrides, error, words, tmp_path):
    with pytest.raises(error, match=words):
        train(load_recipe("pendulum_r2dn_gamma6", [*TINY, *overrides]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused(tiny, tmp_path):
    with pytest.raises(DeviceError, match="use 'cpu'"):
        train(tiny, tmp_path / "run", device=f"cuda:{torch.cuda.device_count()}")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_a_newer_version_is_refused(finished):
    path = finished / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(SchemaError, match="99"):
        open_run(finished)


def test_numpy_environments_train_too(tmp_path):
    recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, "task.id=Pendulum-v1", "algorithm.total_steps=800"])
    assert train(recipe, tmp_path / "run").num_timesteps == 800
