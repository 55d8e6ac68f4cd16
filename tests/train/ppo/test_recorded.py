"""A rollout and an update as one CUDA graph each give the numbers that they give call by call."""

import warnings

import gymnasium
import pytest
import torch
from cuda_without_one import moved
from graph_without_one import graphs_without_one, held
from stable_baselines3.common.callbacks import BaseCallback

from robust_policies.envs import SB3VecEnv, TorchVectorEnv
from robust_policies.envs.perturb import perturb
from robust_policies.envs.wrappers import NormalizeReward
from robust_policies.errors import InvalidValueError
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO
from robust_policies.train.ppo.continuation import Moment

CELLS = {
    "r2dn": {"state_size": 3, "features": 3, "hidden_sizes": (4,), "gamma": 3.0},
    "ren": {"state_size": 3, "features": 4, "gamma": 3.0},
    "lstm": {"state_size": 4},
}
ENVS, STEPS, UPDATES = 4, 6, 6


def made(graphs, task="pendulum", cell="r2dn", critic="mlp", around=lambda env: env, device="cuda", **options):
    """Return a model whose rate and limit fall at every update, to numbers that float32 holds."""
    env_options = {name: options.pop(name) for name in ("randomize", "max_episode_steps") if name in options}
    env = TorchVectorEnv(task, ENVS, device=device, **{"max_episode_steps": 4, **env_options})
    env = SB3VecEnv(around(env))
    env.seed(3)
    kwargs = {"cell": cell, "cell_kwargs": CELLS[cell], "critic": critic, "zero_init": False}
    settings = {"n_steps": STEPS, "batch_size": STEPS * ENVS // 2, "n_epochs": 2, "gamma": 0.95, "seed": 0}
    settings |= {"learning_rate": lambda left: 2.0**-8 * 2 ** round(8 * left) / 64, "clip_range": lambda left: left / 4}
    return TensorRecurrentPPO(
        RecurrentCellPolicy, env, policy_kwargs=kwargs, device=device, graphs=graphs, **(settings | options)
    )


def state_of(model):
    """Return all numbers that training goes on from, on the host."""
    moment = Moment.of(model)
    # Which limits come when is known without graphs alone; and the time of day.
    values = {
        name: value
        for name, value in moment.facts["values"].items()
        if "/clock/_" not in name and not name.endswith("_began")
    }
    episodes = [one[:2] for one in moment.facts["episodes"]]
    weights, optimizer = model.policy.state_dict(), model.policy.optimizer.state_dict()["state"]
    return held([dict(weights), optimizer, moment.tensors]), [moment.facts["random"]["torch"], values, episodes]


def assert_same(one, other):
    (tensors, facts), (others, other_facts) = one, other
    assert facts == other_facts
    for mine, theirs in zip(tensors, others, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            pairs = [(value[key], theirs[name][key]) for key in value] if isinstance(value, dict) else [
                (value, theirs[name])
            ]  # fmt: skip
            assert all(torch.equal(*pair) for pair in pairs), name


def learnt(graphs, between=lambda model, call: None, updates=UPDATES, **options):
    """Return a model after some updates, `between` which something is done to it."""
    model = made(graphs, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Where Triton is there, it finds no card.
        warnings.filterwarnings("ignore", "R2DN and REN run step by step")
        for call in range(updates):
            between(model, call)
            total = model.num_timesteps + ENVS * STEPS
            model._total_timesteps = total
            model.learn(ENVS * STEPS, reset_num_timesteps=call == 0)
    return model


CASES = {
    "values of no memory, Gaussian": {},
    "episodes that the state ends, choices": {"task": "cartpole", "cell": "ren", "n_epochs": 1},
    "a critic with a memory, rewards scaled": {"critic": "own", "normalize_reward": True},
    "shared, observations scaled, values limited": {
        "critic": "shared", "normalize_observation": True, "clip_range_vf": 0.25, "batch_size": STEPS * ENVS,
    },
    "parameters drawn, episodes spread": {"randomize": True, "spread_episodes": True, "max_episode_steps": 9},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_training_is_the_one_call_by_call_to_the_last_bit(case):
    with graphs_without_one() as (waits, state):
        expected = state_of(learnt("never", **CASES[case]))
        waits.taken()
        model = learnt("auto", **CASES[case])
        assert model.why_no_graph == {"rollout": None, "update": None}
        # Two calls of each before, and one recording each.
        replays = model._recorded_rollout.graph.replays, model._recorded_update.graph.replays
        assert replays == (UPDATES - 2, UPDATES - 2) and state.recordings == 2
        assert_same(state_of(model), expected)


def test_a_recorded_rollout_and_update_do_not_wait_for_the_device():
    with graphs_without_one() as (waits, _):
        model = learnt("auto", updates=4)
        waits.taken()
        with torch.no_grad():
            model._recorded_rollout(model._begin(model.env))
        model._recorded_update(model._recorded_update.settings)
        assert not waits.taken()
        assert model._recorded_rollout.graph.replays == model._recorded_update.graph.replays == 3


class Notes(BaseCallback):
    """Keeps what it is told of each step; `stop_after` that many it stops."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.seen = stop_after, []

    def _on_step(self):
        tensors = [self.locals[name].tensor for name in ("actions", "clipped_actions", "rewards", "dones")]
        tensors.append(self.locals["info"].get("_final_obs", torch.zeros_like(tensors[-1])))
        self.seen.append((self.num_timesteps, self.locals["n_steps"], held(tensors)))
        return self.n_calls != self.stop_after


def test_callbacks_are_told_of_every_step_and_may_stop():
    def told(graphs, stop_after=None):
        model, notes = made(graphs), Notes(stop_after)
        model.learn(ENVS * STEPS * 4, callback=notes)
        return model, notes.seen

    with graphs_without_one():
        expected, found = told("never")[1], told("auto")[1]
        assert len(found) == STEPS * 4
        for one, other in zip(found, expected, strict=True):
            assert one[:2] == other[:2] and all(map(torch.equal, one[2], other[2]))
        model, found = told("auto", 3 * STEPS + 2)
        assert len(found) == 3 * STEPS + 2 == model.num_timesteps // ENVS and model._last_obs is None
        # The environments are reset when it goes on.
        model.learn(ENVS * STEPS, reset_num_timesteps=False)
        assert model.why_no_graph == {"rollout": None, "update": None}


def test_a_run_that_goes_on_from_a_moment_and_other_seeds_is_followed():
    kept = {}

    def between(model, call):
        if call == 3:
            kept["moment"] = Moment.of(model)
        if call == 5:
            kept["moment"].resume(model)
        if call == 6:
            model.env.seed(17)
            model._last_obs = None

    with graphs_without_one():
        expected = state_of(learnt("never", between, 9))
        kept.clear()
        model = learnt("auto", between, 9)
        assert model.why_no_graph == {"rollout": None, "update": None} and model._recorded_rollout.graph.replays >= 3
        assert_same(state_of(model), expected)


def test_settings_and_weights_that_others_change_are_followed():
    def between(model, call):
        if call == 3:
            model.vf_coef, model.n_epochs = 0.25, 3
        if call == 5:
            model.policy.load_state_dict({name: 0.5 * value for name, value in model.policy.state_dict().items()})
        if call == 6:
            model.env.inner.params["mass"] = 1.5
        if call == 7:
            model.policy.optimizer.param_groups[0]["eps"] = 0.1
            model.policy.log_std.requires_grad_(False)

    with graphs_without_one():
        expected = state_of(learnt("never", between, 9))
        model = learnt("auto", between, 9)
        assert model.why_no_graph == {"rollout": None, "update": None}
        assert_same(state_of(model), expected)


class Odd(gymnasium.vector.VectorWrapper):
    """A wrapper that nothing is known of."""


REASONS = {
    "target_kl": ({"target_kl": 0.5}, {"update": "target_kl asks after every step whether to go on"}),
    "lstm": (
        {"cell": "lstm"}, {"update": "an LSTM or GRU is cut where episodes begin, elsewhere in every rollout"},
    ),
    "perturbed": (
        {"around": lambda env: perturb(env, [{"ObservationDelay": 1}])}, {"rollout": "it waits for the device in"},
    ),
    "wrapped": ({"around": Odd}, {"rollout": "a Odd around the environments may keep numbers of its own"}),
    "compiled": ({"around": lambda env: compiled(env)}, {"rollout": "compile=True makes a graph of each step"}),
    "optimizer": ({"sgd": True}, {"update": "the optimizer is a SGD, not Stable-Baselines3's Adam"}),
}  # fmt: skip


def compiled(env):
    env._steps.reuses_tensors = True
    return env


@pytest.mark.parametrize("case", REASONS)
def test_what_cannot_be_recorded_is_said_in_a_line_and_learns_the_same(case, monkeypatch):
    options, reasons = REASONS[case]
    options = dict(options)
    with graphs_without_one():
        if options.pop("sgd", False):
            kept = RecurrentCellPolicy.__init__

            def plain(self, *args, **kwargs):
                kept(self, *args, optimizer_class=torch.optim.SGD, **kwargs)

            monkeypatch.setattr(RecurrentCellPolicy, "__init__", plain)
        models = {}
        for graphs in ("never", "auto"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                models[graphs] = made(graphs, **options)
                models[graphs].learn(ENVS * STEPS * 4)
            said = [str(one.message) for one in caught if "one CUDA graph" in str(one.message)]
            assert len(said) == (len(reasons) if graphs == "auto" else 0) and not any("\n" in one for one in said)
        found = models["auto"].why_no_graph
        assert {name for name, why in found.items() if why is not None} == set(reasons)
        assert all(found[name].startswith(why) for name, why in reasons.items())
        assert set(models["never"].why_no_graph.values()) == {"graphs is never"}
        assert_same(*map(state_of, models.values()))


def test_a_wrapper_whose_numbers_are_tensors_is_recorded():
    with graphs_without_one():
        expected, model = (learnt(graphs, around=NormalizeReward, updates=4) for graphs in ("never", "auto"))
        assert model.why_no_graph["rollout"] is None
        assert_same(state_of(model), state_of(expected))


def test_on_a_cpu_nothing_is_recorded_and_nothing_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = made("auto", device="cpu")
        model.learn(ENVS * STEPS)
    assert model.why_no_graph == {"rollout": "the device is cpu", "update": "the device is cpu"}
    with pytest.raises(InvalidValueError, match=r"graphs is 'always'; expected one of auto, never\."):
        made("always", device="cpu")


def test_a_policy_asked_after_a_replay_has_the_new_weights():
    with graphs_without_one():
        model = learnt("auto", updates=3)
        body, inputs = model.policy.lstm_actor, moved(torch.ones(1, 3))
        with torch.no_grad():
            before = held(body.step(inputs, moved(torch.zeros(1, 3)))[0])
            model._recorded_update(model._recorded_update.settings)
            after = held(body.step(inputs, moved(torch.zeros(1, 3)))[0])
            fresh = held(body.cell.step(body.cell.explicit(), body.scaling(inputs), moved(torch.zeros(1, 3)))[0])
        assert not torch.equal(before, after) and torch.allclose(after, fresh, atol=1e-6)
