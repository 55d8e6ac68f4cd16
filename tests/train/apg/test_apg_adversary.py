"""The adversary of the analytic policy gradient: its budget, its schedule, what it does to the return."""

import pytest
import torch

from robust_policies.envs.task import load_plant
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import make_cell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.train import load_recipe
from robust_policies.train.apg.adversary import worst_observations
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.recipe.apg import AdversarySection, ApgSection

COUNT, HORIZON = 20, 12


@pytest.fixture
def training():
    """An R2DN that holds the pendulum up when it starts there: a steep feedback of angle and speed."""
    plant = load_plant("pendulum")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cell = make_cell("mlp", 3, 1, hidden_sizes=[4], activation="identity")
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        first, last = (p for p in cell.parameters() if p.ndim == 2)
        first[0] = torch.tensor([0.0, -8.0, -2.0])
        last[0, 0] = 1.0
    actor = Actor(ScaledCell(cell, Scaling(3)), MeanHead(1, 1, False, 1.0))
    settings = ApgSection(total_steps=10**6, horizon=HORIZON, value_tail=False, adversary={"size": 0.3})
    found = AnalyticPolicyGradient(plant, actor, settings, COUNT)
    state = 0.05 * found.world.state
    found.world = found.world._replace(state=state, observation=plant.observe(state, found.params))
    return found


def test_perturbations_stay_within_their_budget_and_spare_the_rest(training):
    settings = AdversarySection(size=0.3, share=0.7)
    found = worst_observations(training, training.world, settings, 0.0)
    assert found.shape == (HORIZON, COUNT, 3) and not found.requires_grad
    norms = found.norm(dim=-1)
    assert float(norms.max()) <= 0.3 * (1 + 1e-12)
    assert (norms[:, :14] >= 0.15 - 1e-9).any(dim=0).all()
    assert not found[:, 14:].any()


def test_it_begins_when_it_should_and_grows_to_its_size():
    settings = AdversarySection(size=0.4, begin=0.5, ramp=0.25)
    sizes = [settings.size_at(1.0 - passed) for passed in (0.0, 0.5, 0.625, 0.75, 1.0)]
    assert sizes == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4])
    assert AdversarySection(size=0.4, begin=0.0, ramp=0.0).size_at(1.0) == 0.4


def test_it_is_not_asked_before_it_begins(training):
    assert worst_observations(training, training.world, AdversarySection(size=0.3, begin=0.5), 1.0) is None


def test_it_lowers_the_return_far_more_than_random_perturbations_of_the_same_size(training):
    settings = AdversarySection(size=0.3, steps=3, share=1.0)
    found = worst_observations(training, training.world, settings, 0.0)
    random = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    random = random / random.norm(dim=-1, keepdim=True) * found.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        clean, noisy, worst = (
            float(training.rollout(training.world, shift)[0]) for shift in (torch.zeros_like(found), random, found)
        )
    assert worst < noisy < clean
    assert clean - worst > 3 * (clean - noisy)


def test_the_gradient_is_taken_on_what_the_perturbed_policy_does(training):
    shift = torch.zeros(HORIZON, COUNT, 3, dtype=torch.float64)
    assert torch.equal(training.rollout(training.world, shift)[0], training.rollout(training.world)[0])
    shift[:, :, 1] = 0.1
    assert not torch.equal(training.rollout(training.world, shift)[0], training.rollout(training.world)[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{size: -0.1}", "adversary.size is -0.1"),
        ("{size: 0.1, steps: 0}", "adversary.steps is 0"),
        ("{size: 0.1, shear: 1}", "'algorithm.adversary.shear'. Did you mean 'algorithm.adversary.share'"),
    ],
)
def test_wrong_settings_are_refused(given, words):
    with pytest.raises((InvalidValueError, UnknownNameError), match=words):
        load_recipe("pendulum_r2dn_adversarial", [f"algorithm.adversary={given}"])


def test_it_belongs_to_apg_alone():
    with pytest.raises(UnknownNameError, match=r"unknown key .algorithm\.adversary"):
        load_recipe("pendulum_r2dn_gamma6", ["algorithm.adversary={size: 0.1}"])
