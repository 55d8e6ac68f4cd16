"""What ends a run that should not go on: NaN, a reached return, no memory, no disk, another process."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from forked import CONTEXT, begin
from soak_cases import some_soak
from tiny_recipe import TINY

from robust_policies.envs import TorchVectorEnv
from robust_policies.errors import DiskError, DivergedError, InvalidValueError, NotEnoughMemoryError
from robust_policies.policies import load_policy
from robust_policies.train import RunFolder, in_memory, load_recipe, train
from robust_policies.train.ppo import run as ppo_run
from robust_policies.train.run import fitting, resources
from robust_policies.train.run.checkpoints import checkpoints_in
from robust_policies.train.run.guard import GradientNorms, diverged, in_rollout, in_update, in_weights
from robust_policies.train.run.progress import Silent
from robust_policies.train.run.resources import memory_of

ON_DEVICE = ["algorithm.name=tensor_ppo"]
APG = [*TINY[:4], "algorithm.horizon=20", "algorithm.total_steps=1600", *TINY[8:]]
RECIPES = {
    "recurrent_ppo": ("pendulum_r2dn_gamma6", TINY),
    "tensor_ppo": ("pendulum_r2dn_gamma6", [*TINY, *ON_DEVICE]),
    "apg": ("pendulum_r2dn_apg", APG),
}
# Beyond what a processor can address, so that asking for it fails at once wherever memory is promised in advance.
TOO_MANY = 10**14


def recipe_of(algorithm, *more):
    name, assignments = RECIPES[algorithm]
    return load_recipe(name, [*assignments, *more])


class Poisoned(TorchVectorEnv):
    """A pendulum whose state is lost in a certain step."""

    calls = 0

    def _advance(self, action):
        type(self).calls += 1
        if type(self).calls == 730:
            self._state[1] = float("nan")
        return super()._advance(action)


@pytest.mark.parametrize("algorithm", RECIPES)
def test_a_learning_rate_beyond_all_reason_ends_in_one_clear_line(algorithm, tmp_path):
    with pytest.raises(DivergedError) as caught:
        train(recipe_of(algorithm, "algorithm.learning_rate=1e30"), tmp_path / "run")
    text = str(caught.value)
    update = 2 if algorithm == "apg" else 1
    assert f"Training diverged in update {update}, after" in text
    assert "the weights grew until" in text and "the largest is 1e+30" in text
    assert "Lower algorithm.learning_rate" in text and "There is no checkpoint yet." in text
    assert "\n" not in text
    assert not (tmp_path / "run" / "policy.json").exists()


@pytest.mark.parametrize("algorithm", ["recurrent_ppo", "tensor_ppo"])
def test_nan_from_the_environment_is_named_and_the_last_checkpoint_stays(algorithm, tmp_path, monkeypatch):
    make = ppo_run.make_env

    def poisoned(recipe, num_envs, seed, device, training):
        env = make(recipe, num_envs, seed, device, training)
        if training:
            inner = env.unwrapped.inner
            inner.__class__ = Poisoned
            Poisoned.calls = 400
        return env

    monkeypatch.setattr(ppo_run, "make_env", poisoned)
    # 330 steps of each environment: the fourth rollout of 100.
    with pytest.raises(
        DivergedError, match=r"in update 4, after \d+ steps: the environment's (observation|reward) .*nan"
    ) as caught:
        train(recipe_of(algorithm), tmp_path / "run")
    kept = checkpoints_in(tmp_path / "run" / "checkpoints")
    assert kept[-1].name == "step_000000001200"
    assert str(kept[-1]) in str(caught.value)
    assert "learning_rate" not in str(caught.value)


def test_the_first_quantity_that_is_not_finite_is_named():
    good, bad = torch.zeros(5, 3, 2), torch.zeros(5, 3, 2)
    bad[3, 1, 0] = float("inf")
    worse = bad.clone()
    worse[2, 0, 0] = float("nan")
    assert in_rollout(observation=good, action=good, reward=good[..., 0]) is None
    assert in_rollout(observation=bad, action=bad) == "the environment's observation in step 4 of the rollout was inf"
    assert in_rollout(observation=bad, action=worse) == "the action in step 3 of the rollout was nan"
    assert (
        in_rollout(observation=good, reward=bad.numpy()[..., 0])
        == "the environment's reward in step 4 of the rollout was inf"
    )
    # Finite numbers whose sum is not, in their own precision.
    assert in_rollout(observation=torch.full((5, 3), 3e38)) is None
    # A depth image, and an environment that shows nothing.
    assert in_rollout(observation=np.ones((5, 3, 2, 2), np.uint16), reward=good[..., 0]) is None
    assert in_rollout(observation=torch.zeros(5, 3, 0), action=torch.ones(5, 3, dtype=torch.int64)) is None
    numbers = [torch.tensor(1.0), torch.tensor(float("nan"))]
    assert in_update(numbers, numbers[:1]) is None and in_update(numbers, []) is None
    assert in_update(numbers, numbers) == "the loss in gradient step 2 was nan"
    assert in_update([numbers[0]] * 2, numbers) == "the gradient in gradient step 2 was nan"
    assert in_weights({"a": good, "b": bad, "c": torch.zeros(0)}) == "the weights b hold NaN or infinity"
    assert in_weights({"a": good, "n": torch.arange(3)}) is None


def test_gradient_norms_are_those_before_clipping_and_a_bad_step_is_refused():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    norms = GradientNorms(list(layer.parameters()), optimizer, lambda found: diverged(found, 1, 10))
    expected = []
    for scale in (1.0, 10.0):
        optimizer.zero_grad()
        (scale * layer(torch.ones(4, 3)).square().sum()).backward()
        expected.append(float(torch.nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)))
        optimizer.step()
    assert norms.mean() == pytest.approx(np.mean(expected), rel=1e-6)
    assert norms.mean() is None
    before = layer.weight.detach().clone()
    optimizer.zero_grad()
    (layer(torch.ones(4, 3)).sum() * float("nan")).backward()
    with pytest.raises(DivergedError, match="the gradient in gradient step 1 was nan"):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    norms.close()
    optimizer.step()
    assert torch.isnan(layer.weight).all()


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
def test_a_reached_return_ends_the_run_with_the_policy_that_reached_it(algorithm, tmp_path):
    recipe = recipe_of(algorithm, "checkpoints.stop_at_reward=-5000")
    result = train(recipe, tmp_path / "run")
    assert result.reached
    assert result.best_timesteps == result.num_timesteps == 800
    said = RunFolder(tmp_path / "run").read_provenance()
    assert (said["ended_by"], said["num_timesteps"]) == ("stop_at_reward", 800)
    observation = np.array([[0.5, 0.8, 1.0]], dtype=np.float32)
    kept, best = (
        load_policy(path).predict(observation)[0] for path in (result.folder, result.folder / "checkpoints/best")
    )
    assert np.array_equal(kept, best)
    again = train(recipe, tmp_path / "run", resume=True)
    assert (again.num_timesteps, again.reached) == (800, True)
    other = train(recipe_of(algorithm, "checkpoints.stop_at_reward=0"), tmp_path / "other")
    assert (other.num_timesteps, other.reached) == (1600, False)
    assert RunFolder(tmp_path / "other").read_provenance()["ended_by"] == "total_steps"


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
def test_deterministic_algorithms_are_asked_for_and_recorded(algorithm, tmp_path):
    seen = []

    class Looks:
        def start(self, total, done):
            seen.append(torch.are_deterministic_algorithms_enabled())

        def update(self, steps, reward, best):
            pass

        stop = lambda self: None  # noqa: E731

    recipe = recipe_of(algorithm, "deterministic=true", "algorithm.total_steps=400")
    for name in "ab":
        train(recipe, tmp_path / name, reporter=Looks())
    assert seen == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (tmp_path / "a" / "policy.safetensors").read_bytes() == (tmp_path / "b" / "policy.safetensors").read_bytes()
    assert RunFolder(tmp_path / "a").read_provenance()["deterministic"] is True


@pytest.mark.parametrize("algorithm", RECIPES)
def test_what_does_not_fit_into_memory_is_said_with_the_setting_to_lower(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "said_of_fitting", lambda recipe, device: "")
    recipe = recipe_of(algorithm, f"task.num_envs={10**12}")
    with pytest.raises(
        NotEnoughMemoryError, match=r"memory: [\d.]+ [TP]iB more were asked for; lower task.num_envs \(now"
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the largest memory of another process")
def test_how_many_environments_would_fit_is_measured(monkeypatch):
    recipe = recipe_of("tensor_ppo", f"task.num_envs={10**12}")
    free = 100_000_000
    monkeypatch.setattr(fitting, "available", lambda device: free)
    said = fitting.said_of_fitting(recipe, "cpu")
    found = re.fullmatch(
        r" About (\d+) environments would fit: 0\.0931 GiB are free and ([\d.]+) KiB each needs\.", said
    )
    assert found, said
    count, each = int(found[1]), float(found[2]) * 1024
    # Of 100 steps: at least the rollout itself, of 3 observations, an action and seven more numbers a step.
    assert 100 * 4 * 11 < each < 100 * 4 * 11 * 20
    step = recipe.algorithm.batch_size // recipe.algorithm.n_steps
    assert count % step == 0 and 0.8 * free < count * each < 0.91 * free
    monkeypatch.setattr(fitting, "available", lambda device: 0)
    assert not fitting.said_of_fitting(recipe, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody promises more memory than there is")
def test_what_linux_would_promise_and_not_have_is_refused_before_it_is_used(tmp_path, monkeypatch):
    # 4 environments of 100 steps, 28 bytes each.
    monkeypatch.setattr(fitting, "available", lambda device: 11_199)
    with pytest.raises(NotEnoughMemoryError, match=r"memory: 10\.94 KiB more .* lower task.num_envs \(now 4\) or"):
        train(recipe_of("tensor_ppo"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(fitting, "available", lambda device: 11_200)
    fitting.refuse_what_cannot_fit(recipe_of("tensor_ppo"), 4, "cpu")
    # SAC has no rollout: one step.
    fitting.refuse_what_cannot_fit(load_recipe("pendulum_sac_r2dn"), 400, "cpu")
    with pytest.raises(MemoryError):
        fitting.refuse_what_cannot_fit(load_recipe("pendulum_sac_r2dn"), 401, "cpu")


def test_on_a_gpu_its_own_memory_is_measured(monkeypatch):
    told = []

    def measured(command, *, input, **_):
        told.append(json.loads(input))
        return subprocess.CompletedProcess(command, 0, "[1000000, 4584000]\n")

    monkeypatch.setattr(fitting.subprocess, "run", measured)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000, 9_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000_000)
    said = fitting.said_of_fitting(recipe_of("recurrent_ppo", f"task.num_envs={10**6}"), "cuda:1")
    # A thousand bytes each, of nine tenths of eight millions.
    assert re.match(
        r" About 7\d\d\d environments would fit: 0\.00745 GiB are free and 0\.977 KiB each needs\.", said
    ), said
    assert told[0]["device"] == "cuda:1"
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * (device == "cuda:1"))
    assert in_memory._largest("cuda:1") == 7 and in_memory._largest("cpu") > 10**7


def test_a_rollout_that_does_not_fit_names_its_settings(tmp_path):
    recipe = recipe_of("tensor_ppo", f"algorithm.n_steps={10**12}", f"algorithm.batch_size={10**12}")
    with pytest.raises(
        NotEnoughMemoryError, match=r"lower task.num_envs \(now 4\) or algorithm.n_steps \(now 10+\) or"
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_library_that_has_no_memory_is_understood_and_other_errors_pass():
    recipe = recipe_of("apg")
    with pytest.raises(NotEnoughMemoryError, match=r"7\.105 PiB more"), memory_of(recipe, "algorithm.horizon"):
        torch.empty(10**15, dtype=torch.float64)
    with pytest.raises(NotEnoughMemoryError, match="PiB more"), memory_of(recipe, "algorithm.horizon"):
        np.empty(10**15)
    with pytest.raises(NotEnoughMemoryError, match="Not enough memory; lower"), memory_of(recipe, "algorithm.horizon"):
        bytearray(2**62)
    with pytest.raises(NotEnoughMemoryError, match=r"20\.00 GiB more"), memory_of(recipe, "algorithm.horizon"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
    with pytest.raises(RuntimeError, match="shape"), memory_of(recipe, "algorithm.horizon"):
        torch.zeros(2).reshape(3)


class Fills(Silent):
    def update(self, steps, reward, best):
        if steps >= 900:
            import resource

            # As on a full disk, no file may grow: the limit for one is smaller than any checkpoint.
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def fills(algorithm, folder, said):
    """Train in a process that may write no more."""
    torch.set_num_threads(1)
    try:
        train(recipe_of(algorithm), folder, reporter=Fills())
    except Exception as error:
        said.send(f"{type(error).__name__} {error}")


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
def test_a_disk_without_room_leaves_the_last_checkpoint_whole(algorithm, tmp_path):
    folder = tmp_path / "run"
    mine, theirs = CONTEXT.Pipe()
    process = begin(fills, algorithm, folder, theirs)
    process.join()
    assert mine.poll(), process.exitcode
    line = mine.recv()
    assert line.startswith(DiskError.__name__) and "\n" not in line
    last = checkpoints_in(folder / "checkpoints")[-1]
    assert last.name == "step_000000000800"
    assert "File too large" in line and str(last) in line and "Make room" in line
    assert not [path for path in folder.rglob(".*") if path.name != ".gitignore"]
    assert not (folder / "policy.json").exists()
    assert train(recipe_of(algorithm), folder, resume=True).num_timesteps == 1600


class Waits(Silent):
    def __init__(self, asked):
        self.asked = asked

    def update(self, steps, reward, best):
        if steps >= 900:
            self.asked.send("training")
            self.asked.recv()
            sys.exit(0)


def holds(folder, asked):
    """Train in a process that ends when it is told to."""
    torch.set_num_threads(1)
    train(recipe_of("tensor_ppo"), folder, reporter=Waits(asked))


def test_a_run_folder_in_use_by_another_process_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    mine, theirs = CONTEXT.Pipe()
    other = begin(holds, folder, theirs)
    theirs.close()
    try:
        assert mine.recv() == "training"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        for resume in (False, True):
            with pytest.raises(InvalidValueError, match=r"Run folder '.*run' is in use by another process; wait"):
                train(recipe_of("tensor_ppo"), folder, resume=resume)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    finally:
        mine.send("go")
        other.join(900)
    assert other.exitcode == 0
    assert train(recipe_of("tensor_ppo"), folder, resume=True).num_timesteps == 1600
