"""`imitate --method gail` as a user meets it: a reward of bounded gain is learnt, and bad input is one line."""

import json
import sys

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.cli.app import main
from robust_policies.errors import DivergedError
from robust_policies.train import RunFolder, load_recipe, train
from robust_policies.train.imitate import imitation_recipe
from robust_policies.train.imitation.adversary import Adversary
from robust_policies.train.imitation.demonstrations import shown
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.recipe.gail import RewardSection

MASS = "robust_policies/MassSpringDamper-v0"
QUICK = ["algorithm.total_steps=320", "algorithm.n_steps=20", "algorithm.batch_size=80", "algorithm.n_epochs=1",
         "algorithm.demonstrations=4", "algorithm.reward.hidden_sizes=[8]", "algorithm.reward.updates=3",
         "task.num_envs=8", "task.kwargs={max_episode_steps: 40}", "policy.cell=mlp", "policy.hidden_sizes=[8]",
         "policy.critic_kwargs={}", "checkpoints.evaluate_episodes=4", "checkpoints.every=160",
         "checkpoints.certify_every=0"]  # fmt: skip


@pytest.fixture
def command(capsys, tmp_path):
    """Return a function that runs the command in this process and gives status, output and error lines."""

    def ask(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["imitate", *arguments, "--method", "gail", "--no-evaluate", "-o", str(tmp_path / "run")])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err.strip().splitlines()

    return ask


def test_two_updates_make_a_run_folder_and_say_what_bounds_the_reward(command, tmp_path):
    status, out, lines = command("lqg", "--task", MASS, "--set", *QUICK, "algorithm.reward.gamma=2")
    assert status == 0, lines
    said = json.loads((tmp_path / "run" / "imitation.json").read_text())
    assert (said["method"], said["demonstrations"], said["steps"]) == ("gail", 4, 160)
    reward = said["reward"]
    assert reward["gamma"] == 2.0
    assert 0.0 < reward["found_gain"] <= reward["proven_gain"] * (1 + 1e-6) <= 2.0 * (1 + 1e-5)
    assert "Gain of the learnt reward: at most 2 by design" in out and "Closed loop" in out
    for name in ("recipe.yaml", "policy.json", "policy.zip", "provenance.json", "closed_loop.json"):
        assert (tmp_path / "run" / name).is_file()
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.algorithm.name == "gail" and again.checkpoints.keep == "last"


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    recipe = imitation_recipe("lqg", MASS, None, [*QUICK, "algorithm.total_steps=480"], method="gail")
    train(recipe, tmp_path / "whole")

    class Asked:
        calls = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        @property
        def requested(self):
            self.calls += 1
            return self.calls > 30

    with pytest.raises(Exception, match="resume"):
        train(recipe, tmp_path / "stopped", stop=Asked())
    train(recipe, tmp_path / "stopped", resume=True)
    whole, stopped = (RunFolder(tmp_path / name).path / "policy.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()
    found = [json.loads((tmp_path / name / "imitation.json").read_text())["reward"] for name in ("whole", "stopped")]
    assert found[0] == found[1]


@pytest.mark.parametrize("loss", ["logistic", "wasserstein"])
def test_the_reward_tells_teacher_from_student_within_its_bound(loss):
    torch.manual_seed(0)
    theirs, mine = torch.randn(400, 3), torch.randn(400, 3) + 1.5
    settings = RewardSection(gamma=0.5, hidden_sizes=[16], loss=loss, updates=150, learning_rate=1e-2)
    adversary = Adversary(theirs, theirs[:, :1], settings, torch.device("cpu"))
    before = adversary.learn(mine, mine[:, :1])
    after = adversary.learn(mine, mine[:, :1])
    assert after["imitation/reward_gap"] > before["imitation/reward_gap"] > 0.0
    reward = adversary.reward
    with torch.no_grad():
        rows = torch.cat((theirs, mine))
        given = (rows, rows[:, :1])
        values = reward(*given).unsqueeze(-1)
        scaled = (torch.cat(given, -1) - reward.offset) / reward.scale
    # The bound, between any two of the points: a difference of means cannot be more than gamma times the distance.
    assert (torch.cdist(values, values) <= 0.5 * torch.cdist(scaled, scaled) + 1e-4).all()
    gains = adversary.gains()
    assert gains["found_gain"] <= gains["proven_gain"] * (1 + 1e-6) <= 0.5 * (1 + 1e-5)


def test_the_test_of_the_bound_fails_for_a_free_reward():
    torch.manual_seed(0)
    theirs, mine = torch.randn(400, 3), torch.randn(400, 3) + 1.5
    settings = RewardSection(cell="mlp", hidden_sizes=[16], updates=300, learning_rate=1e-2)
    adversary = Adversary(theirs, theirs[:, :1], settings, torch.device("cpu"))
    adversary.learn(mine, mine[:, :1])
    gains = adversary.gains()
    assert gains["gamma"] is None and gains["found_gain"] > 0.5


def test_a_reward_that_diverges_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Adversary, "learn", lambda *_: (_ for _ in ()).throw(FloatingPointError("the loss was nan")))
    recipe = imitation_recipe("lqg", MASS, None, QUICK, method="gail")
    with pytest.raises(DivergedError, match=r"learnt reward: the loss was nan"):
        train(recipe, tmp_path / "run")


def minari(folder, steps=12, observations=1, actions=1, extra=1, value=0.1):
    """Write a Minari data set of two episodes in the layout that Minari 0.5.4 gives its HDF5."""
    h5py = pytest.importorskip("h5py")
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "total_episodes": 2}))
    draw = np.random.default_rng(0)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for number in range(2):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "seed": number, "total_steps": steps, "rewards_sum": -steps - number})
            group.create_group("infos")
            group["observations"] = (value * draw.standard_normal((steps + extra, observations))).astype(np.float32)
            group["actions"] = draw.uniform(-0.1, 0.1, (steps, actions)).astype(np.float32)
            group["rewards"] = np.full(steps, -1.0 - number)
            group["terminations"] = np.zeros(steps, bool)
            group["truncations"] = np.arange(steps) == steps - 1
    return str(folder)


def test_a_minari_data_set_is_learnt_from(command, tmp_path):
    status, _, lines = command(minari(tmp_path / "data-v0"), "--task", MASS, "--set", *QUICK)
    assert status == 0, lines
    said = json.loads((tmp_path / "run" / "imitation.json").read_text())
    assert (said["demonstrations"], said["steps"], said["teacher_return"]) == (2, 24, -18.0)


def test_steps_beyond_the_horizon_are_neither_learnt_nor_counted(command, tmp_path):
    few = ["algorithm.horizon=5", "algorithm.demonstrations=1"]
    status, _, lines = command(minari(tmp_path / "data-v0"), "--task", MASS, "--set", *QUICK, *few)
    assert status == 0, lines
    said = json.loads((tmp_path / "run" / "imitation.json").read_text())
    assert (said["demonstrations"], said["steps"], said["teacher_return"]) == (1, 5, -5.0)


# Of authors and descriptions that are not given.
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_what_minari_itself_writes_is_read_as_minari_reads_it(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    collector = minari.DataCollector(gymnasium.make("Pendulum-v1", max_episode_steps=9), data_format="hdf5")
    # Twelve episodes, so that episode_10 comes before episode_2 by name; the last is left in the middle.
    for number in range(12):
        collector.reset(seed=number)
        for _ in range(9 if number < 11 else 4):
            collector.step(collector.action_space.sample())
    written = collector.create_dataset("mine/pendulum-v0")
    folder, settings = str(tmp_path / "mine" / "pendulum-v0"), [*QUICK, "algorithm.demonstrations=12"]
    recipe = imitation_recipe(folder, "robust_policies/Pendulum-v0", None, settings, method="gail")
    found = shown(recipe, Stage(recipe.task, 1, "cpu"), 0, None, "cpu")
    episodes = sorted(written.iterate_episodes(), key=lambda episode: episode.id)
    np.testing.assert_array_equal(found.observations, np.concatenate([one.observations[:-1] for one in episodes]))
    np.testing.assert_array_equal(found.actions, np.concatenate([one.actions for one in episodes]))
    assert found.episodes == 12 and len(found.actions) == 11 * 9 + 4
    assert found.mean_return == pytest.approx(np.mean([one.rewards.sum() for one in episodes]))


def test_a_minari_data_set_of_another_format_is_refused(command, tmp_path):
    (tmp_path / "set" / "data" / "0").mkdir(parents=True)
    (tmp_path / "set" / "data" / "metadata.json").write_text(json.dumps({"data_format": "arrow"}))
    status, _, lines = command(str(tmp_path / "set"), "--task", MASS, "--set", *QUICK)
    assert status == 2 and "data_format='hdf5'" in lines[-1] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"observations": 3}, "observations (13, 3)"),
        ({"actions": 2}, "actions (12, 2)"),
        ({"extra": 0}, "observations (12, 1)"),
        ({"value": np.nan}, "NaN or infinite"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(options, words, command, tmp_path):
    status, _, lines = command(minari(tmp_path / "data-v0", **options), "--task", MASS, "--set", *QUICK)
    assert status == 2 and words in lines[-1] and not (tmp_path / "run").exists()


def test_without_h5py_a_data_set_is_refused_in_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "main_data.hdf5").write_bytes(b"")
    status, _, lines = command(str(tmp_path / "set"), "--task", MASS, "--set", *QUICK)
    assert status == 2 and "robust-policies[minari]" in lines[-1] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lqg"], "No task was given for teacher 'lqg'"),
        (["results/none", "--task", MASS], "no such file or folder"),
        (["lqg", "--task", MASS, "--set", "algorithm.rounds=3"], "algorithm.rounds"),
        (["lqg", "--task", MASS, "--set", "algorithm.reward.gamma=-1"], "algorithm.reward.gamma is -1"),
        (["lqg", "--task", MASS, "--set", "algorithm.reward={cell: mlp, gamma: 2}"], "cell mlp, which has no bound"),
        (["lqg", "--task", MASS, "--set", "algorithm.reward={cell: mlp, loss: wasserstein}"], "which has no bound"),
        (["lqg", "--task", MASS, "--set", "algorithm.reward.activation=sine"], "sine"),
        (["lqg", "--task", "Pendulum-v1"], "no equations known here"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, words, command, tmp_path):
    status, _, lines = command(*arguments)
    assert status == 2, lines
    (line,) = lines
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "run").exists()
