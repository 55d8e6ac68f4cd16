"""A training that is asked to stop: by its caller, by a signal, and without either."""

import signal

import pytest
from soak_cases import some_soak
from stopping import StopAt, stop_at

from robust_policies.train import RunFolder, StopRequest, TrainingInterruptedError, load_recipe, train
from robust_policies.train.run.checkpoints import checkpoints_in
from robust_policies.train.run.progress import Silent

RECIPES = {
    "recurrent_ppo": ("pendulum_r2dn_gamma6", []),
    "apg": (
        "pendulum_r2dn_apg",
        ["task.num_envs=8", "algorithm.horizon=20", "algorithm.total_steps=1600", "checkpoints.every=480",
         "checkpoints.evaluate_episodes=4"],
    ),
}  # fmt: skip


@pytest.fixture(params=some_soak(RECIPES, "recurrent_ppo"))
def recipe(request, tiny):
    name, assignments = RECIPES[request.param]
    return load_recipe(name, assignments) if assignments else tiny


@pytest.fixture
def handlers():
    """Return the handlers of Ctrl-C and SIGTERM, which are as they were after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


class Looks(Silent):
    """Notes the process's signal handlers while training."""

    def __init__(self):
        self.seen = set()

    def update(self, steps, reward, best):
        self.seen |= {(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)}


def test_a_call_from_python_leaves_the_signal_handlers_alone(recipe, tmp_path, handlers):
    looks = Looks()
    train(recipe, tmp_path / "run", reporter=looks)
    assert looks.seen == set(handlers.items())


def test_a_handler_of_the_callers_own_is_called(recipe, tmp_path, handlers):
    called = []
    signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    assert train(recipe, tmp_path / "run", reporter=StopAt(900, signal.SIGTERM)).num_timesteps == 1600
    assert called == [signal.SIGTERM]


def test_ctrl_c_in_a_call_from_python_leaves_the_last_checkpoint_whole(recipe, tiny, request, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", reporter=StopAt(1300))
    run = RunFolder(tmp_path / "run")
    assert checkpoints_in(run.checkpoints)
    assert not list(run.path.rglob(".*"))
    assert not run.trained
    train(recipe, tmp_path / "run", resume=True)
    whole = request.getfixturevalue("finished_once") if recipe == tiny else train(recipe, tmp_path / "whole")
    assert run.policy_safetensors.read_bytes() == RunFolder(whole.folder).policy_safetensors.read_bytes()


def test_a_request_of_the_callers_own_stops_it(recipe, tmp_path):
    request = StopRequest()

    class Asks(Silent):
        def update(self, steps, reward, best):
            request.requested = steps >= 900

    with pytest.raises(TrainingInterruptedError, match=r"of 1600 steps; .*--resume"):
        train(recipe, tmp_path / "run", reporter=Asks(), stop=request)
    assert checkpoints_in(RunFolder(tmp_path / "run").checkpoints)


@pytest.mark.parametrize("number", some_soak([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
def test_a_commands_request_takes_the_signals_while_it_trains_and_gives_them_back(tiny, tmp_path, handlers, number):
    with pytest.raises(TrainingInterruptedError):
        train(tiny, tmp_path / "run", **stop_at(900, number))
    assert {number: signal.getsignal(number) for number in handlers} == handlers
