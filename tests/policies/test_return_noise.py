"""The certified return of every noise up to some deviations: its loop is what is played, and nothing gets below."""

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line

from robust_policies.certificates.ball import NORMS
from robust_policies.certificates.trajectory import Noise, Perturbation
from robust_policies.control import lqg
from robust_policies.control.augment import with_input_delay
from robust_policies.control.linear_model import from_matrices
from robust_policies.envs import load_plant
from robust_policies.envs.known import Known, known_episodes, seeds_of
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.networks import R2DN, Contracting, make_cell
from robust_policies.policies import (
    DeployedPolicy,
    ReturnCertificate,
    YoulaOptions,
    YoulaPolicy,
    certified_return,
    save_policy,
)
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.playing import Playing
from robust_policies.policies.return_loop import proven_loop
from robust_policies.policies.return_task import fitting_model

ID, STEPS = "robust_policies/MassSpringDamper-v0", 6
TASK = {"id": ID, "kwargs": {"max_episode_steps": STEPS}}
FREE = spaces.Box(-np.inf, np.inf, (1,), np.float32)
FORCE = spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.fixture(scope="module")
def plant():
    return load_plant("mass_spring_damper")


def inner(cell, scale, box):
    return DeployedPolicy(Actor(ScaledCell(cell, Scaling(1, 0.5, 0.01)), MeanHead(1, 1, False, scale)), FREE, box)


def direct(scale=0.3, cell=None):
    torch.manual_seed(0)
    made = make_cell("r2dn", 1, 1, state_size=2, features=3, hidden_sizes=[3], gamma=0.5)
    return inner(made if cell is None else cell, scale, FORCE)


def youla(plant, delay=0, cell=None, limit=0.5):
    given = {"W": plant.E @ plant.E.T, "V": plant.F @ plant.F.T, "Q": plant.Q, "R": 30.0 * plant.R}
    limits = {"action_low": plant.action_low, "action_high": plant.action_high}
    model = from_matrices(plant.A, plant.B, plant.C, **given, **limits)
    model = with_input_delay(model, delay) if delay else model
    torch.manual_seed(0)
    made = make_cell("r2dn", 1, 1, state_size=1, features=2, hidden_sizes=[2], gamma=0.5) if cell is None else cell
    within = inner(made, 0.1 if cell is None else 0.01, spaces.Box(-limit, limit, (1,), np.float32))
    options = YoulaOptions(limit=limit)
    return YoulaPolicy(lqg.design(model), model, within, observation_space=FREE, action_space=FORCE, options=options)


def linear():
    """Return a cell without the part of its neurons, so that its loop is linear."""
    cell = R2DN(1, 3, 1, features=4, hidden_sizes=(4,), guarantee=Contracting(), rate=0.9)
    with torch.no_grad():
        for name in ("B1", "D21"):
            getattr(cell, name).zero_()
    return cell


def silent(plant, episodes, steps):
    """Return the starts of episodes whose noise is zero."""
    known = known_episodes(plant, seeds_of(0, episodes), steps)
    return Known(known.start, torch.zeros_like(known.process), torch.zeros_like(known.measurement))


def within(policy, plant, episodes, steps, scale, delay=0):
    known = silent(plant, episodes, steps)
    return Playing(policy.running(), plant, known, np.full(1, -2.0), np.full(1, 2.0), delay, scale)


@pytest.mark.parametrize(("kind", "delay"), [("direct", 0), ("direct", 2), ("youla", 0), ("youla", 1)])
def test_the_loop_with_noise_is_what_is_played_step_by_step(plant, kind, delay):
    policy = direct(0.1, linear()) if kind == "direct" else youla(plant, delay, linear(), 2.0)
    noise, size = 1.7, 0.02
    loop = proven_loop(policy.running(), fitting_model(policy, plant, delay), plant, noise, size)
    assert not isinstance(loop, str) and loop.noise is not None
    playing = within(policy, plant, 2, 20, noise / loop.noise.bound, delay)
    assert playing.shape == (20, 2, plant.E.shape[1] + 1 + plant.F.shape[1])
    added = 1e-3 * torch.randn(playing.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    still, moved = playing.play(), playing.play(added)
    assert not playing.clipped(moved).any()
    weights, matrices = loop.performance, loop.whole.model
    change = (moved.states - still.states).numpy() @ weights.Cz.T
    change += (moved.applied - still.applied).numpy() @ weights.Dz.T
    state = np.zeros((2, len(matrices.A)))
    for t in range(len(change)):
        d = added[t].numpy()
        out = state @ matrices.C2.T + d @ matrices.D22.T
        np.testing.assert_allclose(out[:, : change.shape[2]], change[t], atol=1e-9)
        state = state @ matrices.A.T + d @ matrices.B2.T
    assert np.abs(change[-1]).max() > 1e-4


@pytest.mark.parametrize("kind", ["direct", "youla"])
@pytest.mark.parametrize("norm", NORMS)
def test_no_noise_and_no_attack_get_below_the_bound(plant, kind, norm):
    policy = direct() if kind == "direct" else youla(plant)
    sizes, bound, episodes = [0.0, 0.05], 2.0, 3
    found = certified_return(policy, TASK, sizes, norm, episodes=episodes, noise=bound)
    assert found.status == "PASS" and found.noise == bound
    assert [row.certified < row.found < row.nominal for row in found.rows] == [True, True]
    assert found.rows[1].certified < found.rows[0].certified and found.rows[1].found <= found.rows[0].found
    playing, worst = within(policy, plant, episodes, STEPS, 1.0), np.zeros((len(sizes), episodes))
    first = plant.E.shape[1]
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        added = torch.randn(playing.shape, generator=generator, dtype=torch.float64).clamp(-bound, bound)
        added = bound * added.sign() if seed % 2 else added
        d = added[..., first : first + 1]
        d *= 1.0 / (d.square().sum(0).sqrt() if norm == "total_l2" else d.abs())
        for index, size in enumerate(sizes):
            moved = added.clone()
            moved[..., first : first + 1] = size * d
            cost = playing.play(moved).cost.numpy()
            worst[index] = np.maximum(worst[index], cost)
            assert (-cost >= np.array(found.each[index])).all()
    assert (worst > 0).all()


def test_without_noise_and_errors_the_bound_is_the_return_of_the_silent_plant(plant):
    policy = direct()
    found = certified_return(policy, TASK, [0.0, 0.02], episodes=2, noise=0.0)
    with torch.no_grad():
        cost = within(policy, plant, 2, STEPS, 0.0).play().cost
    assert found.rows[0].certified == pytest.approx(-float(cost.mean()), rel=1e-9) and found.noise == 0.0
    assert found.rows[0].nominal == pytest.approx(-float(cost.mean()), rel=1e-12)
    other = certified_return(policy, TASK, [0.02], episodes=2)
    assert other.noise is None and other.rows[0].nominal != found.rows[1].nominal


def test_more_noise_is_worse_and_leaves_less_room_to_the_clips():
    bounds = [certified_return(direct(1.0), TASK, [0.02], episodes=2, noise=noise) for noise in (0.0, 1.0, 3.0)]
    certified, unclipped = [one.rows[0].certified for one in bounds], [one.unclipped_up_to for one in bounds]
    assert certified == sorted(certified, reverse=True) and len(set(certified)) == 3
    assert unclipped == sorted(unclipped, reverse=True) and len(set(unclipped)) == 3


def test_up_to_the_stated_size_no_noise_and_no_attack_clip_an_action(plant):
    policy, noise = direct(0.5, linear()), 2.0
    found = certified_return(policy, TASK, [0.7], episodes=2, noise=noise)
    playing, limit = within(policy, plant, 2, STEPS, noise), found.unclipped_up_to
    most = 0.0
    for step in range(STEPS):
        for sign in (-1.0, 1.0):
            # The steepest way to an action: what the whole past can do to it.
            added = torch.zeros(playing.shape, dtype=torch.float64, requires_grad=True)
            playing.play(added).actions[step].sum().backward()
            first = plant.E.shape[1]
            size = torch.ones(playing.shape[2], dtype=torch.float64)
            size[first : first + 1] = limit
            moved = sign * added.grad.sign() * size
            with torch.no_grad():
                played = playing.play(moved)
            assert not playing.clipped(played).any()
            most = max(most, float(played.actions.abs().max()))
    assert 0.9 * 2.0 < most < 2.0


def test_a_loop_that_only_passes_its_input_on_sums_the_noise_exactly():
    mapping = Perturbation("per_step_l2", 0.5, Noise(1, 2, 2.0))
    np.testing.assert_array_equal(
        mapping.groups(5), [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    )
    np.testing.assert_array_equal(mapping.budgets(7, 5), [4.0, 0.25, 4.0, 4.0])
    assert mapping.total(7, 5) == pytest.approx(math.sqrt(7 * 12.25))
    whole = mapping._replace(norm="total_l2")
    np.testing.assert_array_equal(whole.budgets(7, 5), [28.0, 0.25, 28.0, 28.0])
    assert whole.total(7, 5) == pytest.approx(math.sqrt(84.25))
    each = mapping._replace(norm="per_step_linf")
    np.testing.assert_array_equal(each.groups(5), np.eye(5))
    np.testing.assert_array_equal(each.budgets(7, 5), [4.0, 0.25, 0.25, 4.0, 4.0])
    assert mapping._replace(size=0.0).nothing is False and Perturbation("total_l2", 0.0).nothing
    assert mapping._replace(size=0.0, noise=Noise(1, 2, 0.0)).nothing


def test_the_claim_the_file_and_the_command_say_the_noise(plant, tmp_path):
    save_policy(direct(), tmp_path, task=TASK)
    done = answer("certify", tmp_path, "--return", "--noise", "1.5", "--sizes", "0.02", "--episodes", 2)
    assert done.returncode == 0 and "every noise whose numbers are at most 1.5 deviation(s)" in done.stdout
    path = tmp_path / "return_certificate.json"
    found = ReturnCertificate.from_json(path)
    assert found.noise == 1.5 and "2 starts of" in found.claim
    content = json.loads(path.read_text())
    del content["noise"]
    path.write_text(json.dumps(content))
    assert ReturnCertificate.from_json(path).noise is None
    assert "--noise was given without --return" in one_line(answer("certify", tmp_path, "--noise", 1))


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_a_noise_that_is_none_is_refused(noise):
    with pytest.raises(InvalidValueError, match="finite number >= 0 of deviations"):
        certified_return(direct(), TASK, [0.0], episodes=1, noise=noise)


def test_a_plant_that_is_not_linear_has_no_noise():
    policy = DeployedPolicy(
        Actor(ScaledCell(make_cell("mlp", 2, 1, hidden_sizes=[2]), Scaling(2)), MeanHead(1, 1, False, 1.0)),
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
        FORCE,
    )
    with pytest.raises(NotCertifiableError, match="draws no noise"):
        certified_return(policy, "robust_policies/PendulumNoVelocity-v0", [0.01], episodes=1, noise=1.0)
