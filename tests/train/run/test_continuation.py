"""A run that is stopped and resumed ends with the very numbers of one that is not."""

import json
import pickle
import signal

import pytest
import torch
from forked import begin
from soak_cases import some_soak
from stopping import StopAt, stop_at
from tiny_recipe import TINY

from robust_policies.errors import CorruptFileError, SchemaError
from robust_policies.files.tensors import read_tensors, write_tensors
from robust_policies.train import TrainingInterruptedError, load_recipe, train
from robust_policies.train.run.checkpoints import checkpoints_in

ON_DEVICE = ["algorithm.name=tensor_ppo", "algorithm.batch_size=200"]
APG = [
    "task.num_envs=8", "algorithm.horizon=20", "algorithm.total_steps=1600", "checkpoints.every=480",
    "checkpoints.evaluate_every=800", "checkpoints.evaluate_episodes=4",
]  # fmt: skip
# Of Stable-Baselines3's own; the replay buffer is full before the end.
THEIRS = ["policy.action_scale=null", "policy.window=4", "policy.cell_output_size=4", "task.num_envs=2"]
REPLAY = "total_steps: 1600, learning_starts: 300, batch_size: 16, buffer_size: 1000, gamma: 0.9, train_freq: 8"
# Episodes end within rollouts, at other steps than these do.
UNEVEN = "task.kwargs={max_episode_steps: 37}"
CASES = {
    "recurrent_ppo": ("pendulum_r2dn_gamma6", [*TINY, UNEVEN, "algorithm.learning_rate=lin_1e-3"]),
    "recurrent_ppo lstm, perturbed": (
        "pendulum_lstm",
        [*TINY[:2], *TINY[4:], UNEVEN, "task.perturbations=[{ObservationDelay: 2}, {ActionNoise: 0.1}]"],
    ),
    "tensor_ppo": (
        "pendulum_r2dn_gamma6",
        [*TINY, *ON_DEVICE, "task.kwargs={max_episode_steps: 37, randomize: {mass: [0.5, 2.0]}}",
         "algorithm.normalize_observation=true", "algorithm.spread_episodes=true", "algorithm.learning_rate=lin_1e-3"],
    ),
    "tensor_ppo, MuJoCo": (
        "pendulum_r2dn_gamma6",
        [*TINY, *ON_DEVICE, "task.id=robust_policies/Hopper-v0", "policy.observation_scale=null",
         "policy.action_scale=null", "task.perturbations=[{StickyAction: 0.2}]"],
    ),
    "apg": ("pendulum_r2dn_apg", [*TINY[1:4], *APG, UNEVEN]),
    "sac": (
        "pendulum_r2dn_gamma6",
        [*TINY[1:4], *TINY[8:12], *THEIRS, UNEVEN, "policy.critic=mlp",
         "task.perturbations=[{ObservationDelay: 2}]",
         f"algorithm={{name: sac, {REPLAY}, normalize_observation: true, normalize_reward: true}}",
         "algorithm.learning_rate=lin_1e-3"],
    ),
    "td3": (
        "pendulum_mlp",
        [*TINY[3:4], *TINY[8:12], *THEIRS[::3], UNEVEN,
         f"algorithm={{name: td3, {REPLAY}, normalize_reward: true, action_noise: 0.1}}"],
    ),
    "recurrent_sac": (
        "pendulum_r2dn_gamma6",
        [*TINY[1:4], *TINY[8:12], *THEIRS[::3], UNEVEN, "policy.critic=own",
         "policy.critic_kwargs={state_size: 4, net_arch: [8]}", "task.perturbations=[{StickyAction: 0.2}]",
         "algorithm={name: recurrent_sac, total_steps: 1600, learning_starts: 200, buffer_size: 600, batch_size: 4, "
         "sequence_length: 6, burn_in: 3, train_freq: 20, gradient_steps: 2, learning_rate: cos_1e-3}"],
    ),
    "ppo": (
        "pendulum_r2dn_gamma6",
        [*TINY[1:4], *TINY[8:12], *THEIRS, UNEVEN, "policy.critic=own",
         "algorithm={name: ppo, total_steps: 1600, n_steps: 100, n_epochs: 1, normalize_observation: true}"],
    ),
    "apg, adversary": (
        "pendulum_r2dn_adversarial",
        [*TINY[1:4], *APG, UNEVEN, "algorithm.adversary={size: 0.2, begin: 0.2}", "checkpoints.keep=best"],
    ),
    "apg, quadrotor": (
        "pendulum_r2dn_apg",
        [*TINY[1:4], *APG, "task.id=robust_policies/Quadrotor-v0", "policy.observation_scale=null",
         "policy.action_scale=null", "algorithm.learning_rate=cos_1e-3"],
    ),
}  # fmt: skip


def recipe_of(case):
    name, assignments = CASES[case]
    return load_recipe(name, assignments)


def end_of(folder):
    """Return all numbers that a run ends with: weights, optimizer, environments, figures."""
    last = checkpoints_in(folder / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    state["progress"] = {name: value for name, value in state["progress"].items() if not name.endswith("seconds")}
    state["progress"]["evaluations"] = [(steps, mean) for steps, _, mean in state["progress"]["evaluations"]]
    for episode in state.get("episodes", ()):
        episode.pop()
    values = {name: value for name, value in state.get("values", {}).items() if not name.endswith("_began")}
    return {
        "policy": (folder / "policy.safetensors").read_bytes(),
        "training": (last / "training.safetensors").read_bytes(),
        "best": (last / "best.safetensors").read_bytes(),
        "state": {**state, "values": values},
        "figures": [provenance[name] for name in ("num_timesteps", "best_mean_reward", "best_timesteps")],
    }


@pytest.mark.parametrize("case", some_soak(CASES, "recurrent_ppo", "apg", "sac", "recurrent_sac"))
def test_it_ends_with_the_same_numbers(case, tmp_path):
    recipe = recipe_of(case)
    train(recipe, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    # In the first rollout, and in a later one.
    for steps in (1, 900):
        with pytest.raises(TrainingInterruptedError, match="--resume"):
            train(recipe, stopped, resume=True, **stop_at(steps))
    train(recipe, stopped, resume=True)
    expected, found = end_of(tmp_path / "whole"), end_of(stopped)
    for name, value in expected.items():
        assert found[name] == value, name


def begun(case, folder):
    """Train in a process that ends itself."""
    torch.set_num_threads(1)
    train(recipe_of(case), folder, reporter=StopAt(1300, signal.SIGKILL))


@pytest.mark.parametrize("case", some_soak(["recurrent_ppo", "tensor_ppo", "apg"], "tensor_ppo"))
def test_it_does_after_a_kill_too(case, tmp_path):
    recipe = recipe_of(case)
    killed = tmp_path / "killed"
    process = begin(begun, case, killed)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "policy.json").exists()
    assert checkpoints_in(killed / "checkpoints")
    train(recipe, tmp_path / "whole")
    train(recipe, killed, resume=True)
    expected, found = end_of(tmp_path / "whole"), end_of(killed)
    for name, value in expected.items():
        assert found[name] == value, name


def test_other_environments_begin_anew_and_a_warning_says_so(tmp_path):
    recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, "task.id=Pendulum-v1", "algorithm.total_steps=800"])
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "run", **stop_at(500))
    with pytest.warns(UserWarning, match=r"The state of Pendulum-v1 cannot be read: its episodes begin anew"):
        assert train(recipe, tmp_path / "run", resume=True).num_timesteps == 800


def test_a_checkpoint_holds_no_pickle_and_reads_none(tiny, stopped, monkeypatch):
    checkpoint = checkpoints_in(stopped / "checkpoints")[-1]
    assert {path.suffix for path in checkpoint.iterdir()} == {".safetensors", ".json"}

    def refused(*args, **kwargs):
        raise AssertionError("a pickle was read")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", refused)
        patch.setattr(pickle, "load", refused)
        assert train(tiny, stopped, resume=True).num_timesteps == 1600


def test_a_damaged_checkpoint_is_named(tmp_path):
    recipe = recipe_of("apg")
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "run", **stop_at(900))
    checkpoint = checkpoints_in(tmp_path / "run" / "checkpoints")[-1]
    weights = checkpoint / "training.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(CorruptFileError, match="delete it to resume from an earlier one"):
        train(recipe, tmp_path / "run", resume=True)
    write_tensors(weights, {"n_updates": torch.tensor(3)})
    with pytest.raises(CorruptFileError, match=r"cannot be read \((Key|Runtime)Error\)"):
        train(recipe, tmp_path / "run", resume=True)
    weights.unlink()
    with pytest.raises(CorruptFileError, match="is incomplete"):
        train(recipe, tmp_path / "run", resume=True)
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "schema": 1}))
    with pytest.raises(SchemaError, match="finish the run with the version that began it"):
        train(recipe, tmp_path / "run", resume=True)


def test_tensors_keep_their_layout_on_disk(tmp_path):
    plain = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"plain": plain, "turned": plain.permute(2, 0, 1), "columns": torch.randn(5, 3).T, "part": plain[:, 1],
               "number": torch.tensor(2.5), "none": torch.zeros(0, 3)}  # fmt: skip
    write_tensors(tmp_path / "file", tensors)
    found = read_tensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value), name
    assert found["turned"].stride() == tensors["turned"].stride()
    assert found["columns"].stride() == tensors["columns"].stride()
