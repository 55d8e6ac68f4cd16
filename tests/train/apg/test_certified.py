"""Training for the certified return: its sampled gain is the proven one, it lowers it, and what has none is refused."""

import copy
import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from stopping import stop_at

from robust_policies.control.youla import Performance
from robust_policies.envs.task import load_plant
from robust_policies.errors import DivergedError, InvalidValueError, NotCertifiableError, UserError
from robust_policies.evaluation import run_episodes
from robust_policies.policies import load_policy
from robust_policies.policies.return_loop import around_cell, proven_loop
from robust_policies.policies.return_task import fitting_model
from robust_policies.train import TrainingInterruptedError, load_recipe, train
from robust_policies.train.apg.certified import CertifiedCost
from robust_policies.train.apg.loop_gain import LoopGain
from robust_policies.train.apg.run import ApgRun
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.run.checkpoints import Progress

RECIPE = "mass_spring_damper_youla_certified"
SHORT = (
    "task.num_envs=4",
    "policy.state_size=2",
    "policy.features=2",
    "policy.hidden_sizes=[3]",
    "algorithm.horizon=100",
    "algorithm.total_steps=4800",
    "algorithm.certified_every=6",
    "algorithm.learning_rate=3e-2",
    "checkpoints.every=2400",
    "checkpoints.evaluate_every=4800",
    "checkpoints.evaluate_episodes=4",
    "checkpoints.certify_every=0",
)


def recipe_with(*changes):
    return load_recipe(RECIPE, [*SHORT, *changes])


def judged(folder):
    """Return the policy in a folder, its plant and the model that it was made for."""
    policy, plant = load_policy(folder), load_plant("mass_spring_damper")
    return policy, plant, fitting_model(policy, plant)


@functools.cache
def proven(folder):
    """Return what is proven of the policy's loop, from an error to the root of the cost."""
    policy, plant, model = judged(folder)
    return proven_loop(policy.running(), model, plant).gain


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same short training for the plain and for the certified cost."""
    root = tmp_path_factory.mktemp("certified")
    train(recipe_with(), root / "certified")
    train(recipe_with("algorithm.certified_size=null"), root / "plain")
    return root


def test_it_lowers_the_gain_and_costs_little(trained):
    gains = {name: proven(trained / name).gain for name in ("certified", "plain")}
    assert gains["certified"] < 0.9 * gains["plain"]
    returns = {
        name: run_episodes(load_policy(trained / name), "robust_policies/MassSpringDamper-v0", "l2", [0.0], 32, 5)
        for name in gains
    }
    costs = {name: -found.returns.mean() for name, found in returns.items()}
    assert costs["certified"] < 1.1 * costs["plain"]


def test_the_sampled_gain_is_the_proven_one_from_below(trained):
    for name in ("certified", "plain"):
        policy, plant, model = judged(trained / name)
        running, gain = policy.running(), proven(trained / name)
        sampled = LoopGain(around_cell(running, model, plant), running.sizes, torch.device("cpu"))
        found = float(sampled(policy.policy.cell.explicit(), torch.as_tensor(gain.theta)))
        assert 0.97 * gain.gain < found <= gain.gain * (1 + 1e-6)


def test_its_gradient_is_that_of_finite_differences(trained):
    policy, plant, model = judged(trained / "plain")
    running, theta = policy.running(), torch.as_tensor(proven(trained / "plain").theta)
    sampled = LoopGain(around_cell(running, model, plant), running.sizes, torch.device("cpu"))
    cell = copy.deepcopy(policy.policy.cell).double().requires_grad_(True)
    parameters = list(cell.parameters())
    slopes = torch.autograd.grad(sampled(cell.explicit(), theta), parameters, allow_unused=True)
    generator, step = torch.Generator().manual_seed(0), 1e-6
    ways = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    ends = []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(sign * step * way)
            ends.append(float(sampled(cell.explicit(), theta)))
    slope = sum(float((g * way).sum()) for g, way in zip(slopes, ways, strict=True) if g is not None)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_no_gain_is_sampled_where_the_multipliers_prove_none(trained):
    policy, plant, model = judged(trained / "plain")
    running, theta = policy.running(), torch.as_tensor(proven(trained / "plain").theta)
    sampled = LoopGain(around_cell(running, model, plant), running.sizes, torch.device("cpu"))
    assert sampled(policy.policy.cell.explicit(), 0.0 * theta) is None


def test_it_goes_on_with_the_same_numbers(tmp_path):
    brief = ("algorithm.total_steps=1600", "checkpoints.every=800", "checkpoints.evaluate_every=1600")
    recipe = recipe_with(*brief, "algorithm.certified_every=3")
    train(recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "run", **stop_at(700))
    train(recipe, tmp_path / "run", resume=True)
    for name in ("policy.safetensors", "checkpoints/step_000000001600/training.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def tiny(*changes):
    """Return a recipe of a policy directly in the loop, of one update, for the plain cost."""
    return recipe_with("youla=null", "algorithm.certified_size=null", "algorithm.total_steps=400", *changes)


def test_the_loop_that_is_differentiated_is_the_one_that_is_proven():
    recipe = tiny(
        "policy.hidden_sizes=[3, 4]", "policy.gamma=0.5", "policy.observation_scale=[0.5]", "algorithm.zero_init=false"
    )
    run = ApgRun(recipe, "cpu")
    policy, plant = run.deployed(), load_plant("mass_spring_damper")
    model, running = fitting_model(policy, plant), policy.running()
    weights = Performance.weighted(plant.Q, plant.R)
    whole = running.loop(model, replace(weights, Bw=np.zeros((model.n, 0)), Dv=np.eye(model.p))).model
    sampled = LoopGain(around_cell(running, model, plant), running.sizes, torch.device("cpu"))
    names = ("A", "B1", "B2", "C1", "D11", "D12", "C2", "D21", "D22")
    for name, found in zip(names, sampled.loop(policy.cell.explicit()), strict=True):
        assert np.abs(found.numpy() - getattr(whole, name)).max(initial=0.0) <= 1e-12
    assert np.abs(whole.D11).max() > 1e-3


def test_a_lost_bound_is_said_and_undone(monkeypatch):
    run = ApgRun(recipe_with(), "cpu")
    certified = run.algorithm.certified
    before = {name: value.clone() for name, value in run.module.state_dict().items()}
    with torch.no_grad():
        for parameter in run.module.parameters():
            parameter.add_(0.1)
    monkeypatch.setattr(CertifiedCost, "proven", lambda self: "nothing is proven")
    with pytest.warns(UserWarning, match=r"Before update 7 the bound .* was lost \(nothing is proven\).* at 0.5 of"):
        certified.renew(6)
    assert all(torch.equal(value, before[name]) for name, value in run.module.state_dict().items())
    with pytest.warns(UserWarning, match="0.25 of"):
        certified.renew(12)
    certified.pace = 2.0**-10
    with pytest.raises(DivergedError, match="lost again and again"):
        certified.renew(18)


def test_the_best_is_that_of_the_largest_certified_return():
    progress = Progress()
    kept = [progress.evaluated(*one) for one in ((-5.0, -20.0), (-4.0, -25.0), (-6.0, -15.0), (-1.0, None))]
    assert kept == [True, False, True, False]
    assert (progress.best_reward, progress.best_rank) == (-6.0, -15.0)


def test_training_begins_with_the_policy_of_a_folder(tmp_path):
    train(tiny(), tmp_path / "first")
    start = f"algorithm.start={tmp_path / 'first'}"
    begun = ApgRun(tiny(start, "seed=9"), "cpu").module.state_dict()
    assert all(
        torch.equal(begun[name], value) for name, value in load_policy(tmp_path / "first").actor.state_dict().items()
    )
    for change, words in (
        ("policy.state_size=3", "other parts"),
        ("policy.activation=tanh", "other options"),
        ("policy.observation_scale=[0.5]", "other parts"),
        ("policy.cell=lstm", "other parts"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            ApgRun(
                tiny(start, change, *(["policy.features=null", "policy.hidden_sizes=null"] * ("lstm" in change))), "cpu"
            )


def test_the_size_grows_over_the_ramp():
    settings = ApgSection(total_steps=100, value_tail=False, discount=1.0, certified_size=0.2, certified_ramp=0.5)
    sizes = [settings.certified_size_at(1.0 - passed) for passed in (0.0, 0.25, 0.5, 1.0)]
    assert sizes == pytest.approx([0.02, 0.11, 0.2, 0.2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["algorithm.certified_size=-1"], "certified_size is -1"),
        (["algorithm.discount=0.99"], "discount is 0.99"),
        (["algorithm.value_tail=true"], "value_tail is True"),
        (["policy={cell: ren, state_size: 2, features: 3}"], "policy.cell is 'ren'"),
        (["algorithm.start=lqg"], "algorithm.start is 'lqg' with a youla section"),
        (["youla=null", "task.id=robust_policies/DoubleIntegrator-v0"], "needs a policy with a bound to start from"),
        (["youla=null", "task.id=robust_policies/Pendulum-v0"], "is 'pendulum', which is not linear"),
    ],
)
def test_what_has_no_certified_cost_is_refused_before_it_begins(changes, words, tmp_path):
    with pytest.raises((UserError, NotCertifiableError), match=words):
        train(recipe_with(*changes), tmp_path / "run")
    assert not (tmp_path / "run" / "policy.json").exists()
