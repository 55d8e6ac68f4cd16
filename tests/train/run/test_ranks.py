"""Two processes that train one policy together: the numbers of one, files of one, and an end that says why."""

import json
import os
import signal
import socket

import pytest
import torch
from forked import begin
from in_process import answer, one_line
from tiny_recipe import TINY

from robust_policies.cli.app import main
from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.envs.snapshot import Snapshot, capture, restore
from robust_policies.errors import DeviceError, InvalidValueError
from robust_policies.files.tensors import read_tensors
from robust_policies.train import StopRequest, TrainingInterruptedError, launched, load_recipe, train
from robust_policies.train.ppo.buffer import TensorRolloutBuffer
from robust_policies.train.ppo.callback import RunCallback
from robust_policies.train.ppo.continuation import Moment
from robust_policies.train.ppo.shares import Shares
from robust_policies.train.run.checkpoints import checkpoints_in
from robust_policies.train.run.progress import Silent
from robust_policies.train.run.ranks import ALONE, Ranks

# Episodes end within rollouts and not together; two minibatches of four of the eight environments.
CHANGES = [
    *TINY, "task.num_envs=8", "algorithm.name=tensor_ppo", "algorithm.total_steps=800", "algorithm.n_steps=50",
    "algorithm.batch_size=200", "checkpoints.evaluate_every=400",
    "task.kwargs={max_episode_steps: 37, randomize: {mass: [0.5, 2.0]}}", "algorithm.normalize_observation=true",
    "algorithm.normalize_reward=true", "algorithm.spread_episodes=true",
]  # fmt: skip
RECIPE = "pendulum_r2dn_gamma6"
CHOICES = [
    "task.id=robust_policies/CartPole-v0", "task.kwargs={}", "policy.action_scale=null",
    "policy.observation_scale=null",
]  # fmt: skip


class StopAfter(Silent, StopRequest):
    """Asks for an end once `steps` are done, of the one rank that shows progress."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def update(self, steps, reward, best):
        self.requested = self.requested or steps >= self.steps


def environment(rank, port=0):
    """Return what torchrun says to rank `rank` of two."""
    return {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def trained_in(rank, port, folder, changes, stop_at):
    """Be a rank that trains; the first one may ask for an end."""
    os.environ.update(environment(rank, port))
    torch.set_num_threads(1)
    stop = StopAfter(stop_at)
    try:
        train(load_recipe(RECIPE, changes), folder, resume=True, reporter=stop, stop=stop, ranks=launched())
    except TrainingInterruptedError:
        raise SystemExit(7) from None


def together(folder, changes, stop_at=10**9):
    """Return the exit codes of two ranks that train into a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [begin(trained_in, rank, port, folder, changes, stop_at) for rank in (0, 1)]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def end_of(folder):
    """Return the tensors of a run's last checkpoint, and its state."""
    last = checkpoints_in(folder / "checkpoints")[-1]
    return read_tensors(last / "training.safetensors"), json.loads((last / "state.json").read_text())


def assert_same(found, expected, tolerance=1e-6):
    (tensors, state), (other, wanted) = end_of(found), end_of(expected)
    assert tensors.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(
            tensors[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
        )
    assert state["random"] == wanted["random"]
    counts = {path: value for path, value in wanted["values"].items() if isinstance(value, int | list)}
    assert {path: state["values"][path] for path in counts} == counts
    means = [[mean for *_, mean in one["progress"]["evaluations"]] for one in (state, wanted)]
    assert means[0] == pytest.approx(means[1], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    torch.set_num_threads(1)
    train(load_recipe(RECIPE, CHANGES), folder)
    return folder


def test_two_ranks_end_with_the_numbers_of_one(alone, tmp_path):
    assert together(tmp_path / "run", CHANGES) == [0, 0]
    assert_same(tmp_path / "run", alone)
    assert len([*(tmp_path / "run" / "tensorboard").iterdir()]) == 1
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["ranks"] == 2


def test_another_number_of_ranks_goes_on_from_a_checkpoint(alone, tmp_path):
    assert together(tmp_path / "two", CHANGES, stop_at=300) == [7, 7]
    assert end_of(tmp_path / "two")[1]["progress"]["num_timesteps"] == 400
    train(load_recipe(RECIPE, CHANGES), tmp_path / "two", resume=True)
    assert_same(tmp_path / "two", alone)
    stop = StopAfter(300)
    with pytest.raises(TrainingInterruptedError):
        train(load_recipe(RECIPE, CHANGES), tmp_path / "one", reporter=stop, stop=stop)
    assert together(tmp_path / "one", CHANGES) == [0, 0]
    # What the interrupted rollout of the first 400 steps left is given up, so it began anew at 0.
    assert_same(tmp_path / "one", alone)


def test_choices_are_drawn_as_by_one(tmp_path):
    changes = [*CHANGES, *CHOICES, "algorithm.total_steps=400"]
    train(load_recipe(RECIPE, changes), tmp_path / "alone")
    assert together(tmp_path / "two", changes) == [0, 0]
    assert_same(tmp_path / "two", tmp_path / "alone")


def dies(self, rank):
    if self.training.job.ranks.rank == rank and self.num_timesteps > 450:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def command(rank, port, folder, streams):
    """Be a rank of the command; the second one is killed in its second rollout."""
    for number, path in ((1, streams[0]), (2, streams[1])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment(rank, port), COLUMNS="200", NO_COLOR="1")
    RunCallback._on_step = lambda self: dies(self, 1)
    main(["train", RECIPE, "-o", str(folder), "--no-evaluate", *(part for one in CHANGES for part in ("--set", one))])


def test_a_rank_that_dies_ends_the_run_with_one_line_and_a_whole_checkpoint(alone, tmp_path):
    folder = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    streams = [[tmp_path / f"{name}{rank}" for name in ("out", "err")] for rank in (0, 1)]
    processes = [begin(command, rank, port, folder, streams[rank]) for rank in (0, 1)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL]
    said = streams[0][1].read_text()
    kept = checkpoints_in(folder / "checkpoints")[-1]
    assert said.splitlines()[-1].startswith("error: Rank 0 of 2 lost another one, which ended or cannot be reached.")
    assert str(kept) in said
    assert not streams[1][0].read_text() + streams[1][1].read_text()
    train(load_recipe(RECIPE, CHANGES), folder, resume=True)
    assert_same(folder, alone)


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        (["task.num_envs=7"], "cpu", "task.num_envs is 7 and torchrun started 2 ranks; expected a multiple of 2."),
        (
            ["algorithm.name=recurrent_ppo", *(f"algorithm.{n}=false" for n in
             ("normalize_observation", "normalize_reward", "spread_episodes"))],
            "cpu", "algorithm.name is recurrent_ppo and torchrun started 2 ranks; expected tensor_ppo",
        ),
        ([], "cuda:0", "--device is cuda:0 for 2 ranks; expected cuda, which gives each its own."),
    ],
)  # fmt: skip
def test_what_ranks_cannot_do_is_said_once_before_anything_is_written(changes, device, said, tmp_path, monkeypatch):
    arguments = ["train", RECIPE, "-o", str(tmp_path / "run"), "--device", device]
    arguments += [part for one in [*CHANGES, *changes] for part in ("--set", one)]
    for name, value in environment(0).items():
        monkeypatch.setenv(name, value)
    assert said in one_line(answer(*arguments))
    monkeypatch.setenv("RANK", "1")
    done = answer(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert not (tmp_path / "run").exists()


def test_ranks_are_those_of_torchrun_alone(monkeypatch):
    for name in environment(0):
        monkeypatch.delenv(name, raising=False)
    assert launched() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched() is ALONE
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = launched()
    assert (found.rank, found.size, found.local, found.first) == (3, 4, 1, False)


def test_a_rank_has_the_gpu_of_its_own_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(5, 8, 1).device("cuda") == "cuda:1"
    assert Ranks(5, 8, 1).device("cpu") == "cpu"
    assert ALONE.device("cuda:1") == "cuda:1"
    with pytest.raises(DeviceError, match=r"which has 2 CUDA devices; expected at most .* \(--nproc-per-node 2\)"):
        Ranks(2, 3, 2).device("cuda")
    with pytest.raises(InvalidValueError, match="expected a multiple of 3"):
        Ranks(0, 3).share(8, "task.num_envs")


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_ranks_share_the_minibatches_of_one(count):
    def places(ranks):
        torch.manual_seed(3)
        buffer = TensorRolloutBuffer(5, 8 // ranks.size, (1,), (1,), (0, 0), torch.device("cpu"), ranks=ranks)
        offset, found = ranks.rank * buffer.n_envs, []
        for pieces in buffer.minibatches(count, rows_at_once=10):
            rows, shares = zip(*pieces.places(), strict=True)
            rows = [torch.arange(buffer.n_envs)[one] + offset for one, share in zip(rows, shares, strict=True) if share]
            found.append(({int(i) for one in rows for i in one}, sum(shares)))
        return found

    whole = places(ALONE)
    parts = [places(Ranks(rank, 4)) for rank in range(4)]
    for number, (rows, share) in enumerate(whole):
        assert share == pytest.approx(1.0)
        assert set.union(*(part[number][0] for part in parts)) == rows
        assert sum(len(part[number][0]) for part in parts) == len(rows)
        assert sum(part[number][1] for part in parts) == pytest.approx(1.0)


def test_ranks_share_what_an_earlier_version_kept_elsewhere():
    def made(count):
        env = SB3VecEnv(TorchVectorEnv("pendulum", count, max_episode_steps=7))
        env.seed(3)
        env.reset()
        return env

    taken = capture(bridge=made(4))
    old = {"clock/elapsed": "_elapsed", "clock/_surely_running": "_steps_surely_running", "_streams/seeds": "_seeds",
           "clock/_limits_after": "_limits_after"}  # fmt: skip
    old = {f"bridge/env/{now}": f"bridge/env/{then}" for now, then in old.items()}
    assert old.keys() <= taken.tensors.keys() | taken.values.keys()
    tensors, values = ({old.get(path, path): one for path, one in part.items()} for part in taken[:2])
    found = Shares(made, Ranks(1, 2)).mine(Moment(tensors, {"values": values}))
    env = made(2)
    restore(Snapshot(dict(found.tensors), found.facts["values"], taken.same), bridge=env)
    assert env.env.np_random_seed == (5, 6)
