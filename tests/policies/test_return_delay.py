"""The certified return behind a delay of the actions: what is bounded is the environment behind ActionDelay."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line

from robust_policies.control import augment, lqg
from robust_policies.control.linear_model import from_matrices
from robust_policies.control.youla import Performance
from robust_policies.envs import load_plant, perturb
from robust_policies.envs.known import known_episodes, seeds_of
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.evaluation import run_episodes
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
from robust_policies.policies.return_task import bare_task, fitting_model

ID, STEPS = "robust_policies/MassSpringDamper-v0", 6
TASK = {"id": ID, "kwargs": {"max_episode_steps": STEPS}}
SIZES = {"state_size": 1, "features": 2, "hidden_sizes": [2], "gamma": 0.5}
FREE = spaces.Box(-np.inf, np.inf, (1,), np.float32)
FORCE = spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.fixture(scope="module")
def plant():
    return load_plant("mass_spring_damper")


def behind(steps):
    return {**TASK, "perturbations": [{"ActionDelay": steps}]}


def direct(cell=None, scale=1.0):
    torch.manual_seed(0)
    cell = make_cell("r2dn", 1, 1, **SIZES) if cell is None else cell
    return DeployedPolicy(Actor(ScaledCell(cell, Scaling(1, 0.5, 0.01)), MeanHead(1, 1, False, scale)), FREE, FORCE)


def linear(cell):
    """Return a cell without the part of its neurons, so that its loop is linear."""
    with torch.no_grad():
        for name in ("B1", "D21"):
            getattr(cell, name).zero_()
    return cell


def youla(plant, delay=0, known=0, weight=30.0, limit=0.5, cell=None):
    """Return a Youla policy with a delay in its controller, or (`known`) in the model that it was designed for."""
    given = {"W": plant.E @ plant.E.T, "V": plant.F @ plant.F.T, "Q": plant.Q, "R": weight * plant.R}
    limits = {"action_low": plant.action_low, "action_high": plant.action_high}
    model = from_matrices(plant.A, plant.B, plant.C, **given, **limits)
    model = augment.with_input_delay(model, known) if known else model
    torch.manual_seed(0)
    cell = make_cell("r2dn", 1, 1, **SIZES) if cell is None else cell
    inner = Actor(ScaledCell(cell, Scaling(1)), MeanHead(1, 1, False, 0.1))
    inner = DeployedPolicy(inner, FREE, spaces.Box(-limit, limit, (1,), np.float32))
    options = YoulaOptions(limit=limit, delay=delay)
    return YoulaPolicy(lqg.design(model), model, inner, observation_space=FREE, action_space=FORCE, options=options)


def playing(policy, plant, delay, steps=30):
    known = known_episodes(plant, seeds_of(0, 2), steps)
    return Playing(policy.running(), plant, known, np.full(1, -2.0), np.full(1, 2.0), delay)


@pytest.mark.parametrize("kind", ["direct", "youla", "designed for it"])
@pytest.mark.parametrize("delay", [1, 2])
def test_the_loop_is_what_is_played_step_by_step(plant, kind, delay):
    cell = linear(R2DN(1, 3, 1, features=4, hidden_sizes=(4,), guarantee=Contracting(), rate=0.9))
    made = {"youla": {"delay": delay}, "designed for it": {"known": delay}}
    policy = direct(cell, 0.1) if kind == "direct" else youla(plant, cell=cell, limit=2.0, **made[kind])
    model = fitting_model(policy, plant, delay)
    loop = policy.running().loop(model, Performance(*_outputs(plant, model)))
    played = playing(policy, plant, delay)
    added = 1e-2 * torch.randn(played.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    still, moved = played.play(), played.play(added)
    assert not played.clipped(moved).any()
    z = [(one.states @ torch.as_tensor(_outputs(plant, model)[0][: model.n]).T).numpy() for one in (still, moved)]
    change, state = z[1] - z[0], np.zeros((2, len(loop.model.A)))
    sent = (moved.applied - still.applied).numpy()
    assert np.abs(sent).max() > 1e-4
    for t in range(len(change)):
        d = added[t].numpy()
        out = state @ loop.model.C2.T + d @ loop.model.D22.T
        np.testing.assert_allclose(out[:, : model.n], change[t], atol=1e-9)
        np.testing.assert_allclose(out[:, model.n : model.n + 1], sent[t], atol=1e-9)
        state = state @ loop.model.A.T + d @ loop.model.B2.T


def _outputs(plant, model):
    """Return weights with which z is all states of the model, then the action as it is sent."""
    n = model.n
    return np.eye(n + 1, n), np.eye(n + 1)[:, n:], np.zeros((n, 0)), np.eye(1)


@pytest.mark.parametrize("delay", [1, 2])
def test_what_is_played_is_the_environment_behind_actiondelay(plant, delay):
    # The force goes to its limit, so that clips are played too.
    policy = youla(plant, delay, weight=0.01, limit=0.1)
    played = playing(policy, plant, delay, steps=20)
    nominal = played.play()
    assert played.clipped(nominal).any()
    env = perturb.perturb(gymnasium.make_vec(ID, num_envs=2), [{"ActionDelay": delay}])
    env.reset(seed=seeds_of(0, 2))
    cost = np.zeros(2)
    for t in range(20):
        np.testing.assert_allclose(env.unwrapped.state.numpy(), nominal.states[t, :, :2].numpy(), atol=1e-9)
        # As the policy asks for them: what it sends beyond the limits waits, and is clipped when it arrives.
        _, reward, *_ = env.step(nominal.actions[t])
        cost -= np.asarray(reward, dtype=np.float64)
    np.testing.assert_allclose(cost, nominal.cost.numpy(), rtol=1e-5)
    env.close()


@pytest.mark.parametrize(
    ("kind", "delay", "norm"),
    [("direct", 1, "per_step_linf"), ("direct", 2, "per_step_l2"), ("youla", 2, "total_l2")],
)
def test_no_attack_gets_below_the_bound(plant, kind, delay, norm):
    policy = direct() if kind == "direct" else youla(plant, delay)
    found = certified_return(policy, behind(delay), [0.0, 0.05], norm, episodes=2)
    assert found.status == "PASS" and found.delay == delay
    assert f"reach the plant {delay} step(s) late" in found.claim
    still, attacked = found.rows
    # At size 0 the bound is the cost as its root along the loop says it, with the action that arrives.
    assert still.certified == pytest.approx(still.nominal, rel=1e-9)
    assert attacked.certified < attacked.found < attacked.nominal
    tried = playing(policy, plant, delay, STEPS)
    for seed in (3, 4):
        cost = tried.play(tried.worst(norm, 0.05, (), 8, seed)).cost.numpy()
        assert (-cost >= np.array(found.each[1])).all()
        assert -cost.mean() < attacked.nominal
    played = run_episodes(policy, ID, "l2", [0.0], 2, 0, env_kwargs=TASK["kwargs"],
                          perturbations=behind(delay)["perturbations"])  # fmt: skip
    assert still.nominal == pytest.approx(played.returns.mean(), rel=1e-4)


def test_clips_are_part_of_the_bound(plant):
    found = certified_return(direct(), TASK, [12.0], episodes=2, delay=2)
    (attacked,) = found.rows
    assert found.status == "PASS" and attacked.clipped_share > 0 and found.unclipped_up_to < 12.0
    assert attacked.triangle is None and "which the bound includes" in found.claim
    tried = playing(direct(), plant, 2, STEPS)
    played = tried.play(tried.worst("per_step_l2", 12.0, (), 12, 5))
    assert tried.clipped(played).any()
    assert (-played.cost.numpy() >= np.array(found.each[0])).all() and np.isfinite(found.each[0]).all()


def test_a_delay_is_said_once(plant):
    assert fitting_model(direct(), plant).n == 2 and fitting_model(direct(), plant, 3).n == 5
    both = perturb.perturb(gymnasium.make_vec(ID, num_envs=1), [{"ActionDelay": 1}, {"ActionDelay": 2}])
    alone = perturb.perturb(gymnasium.make(ID, max_episode_steps=STEPS), ["ActionDelay"])
    expected = [
        (TASK, 0, 0),
        (TASK, 2, 2),
        (behind(0), 1, 1),
        (behind(2), 0, 2),
        (behind(2), 2, 2),
        (both, 0, 3),
        (alone, 0, 1),
    ]
    for task, given, late in expected:
        assert bare_task(task, given).delay == late
    with pytest.raises(InvalidValueError, match=r"delay is 1, and ActionDelay around the task is 2"):
        certified_return(direct(), behind(2), [0.02], delay=1)
    with pytest.raises(InvalidValueError, match="delay"):
        certified_return(direct(), TASK, [0.02], delay=-1)
    with pytest.raises(NotCertifiableError, match="ActionNoise stands around"):
        bare_task({**TASK, "perturbations": [{"ActionDelay": 1}, {"ActionNoise": 0.1}]})


def test_a_youla_policy_of_another_delay_is_refused(plant):
    for own, here in ((0, 1), (2, 1), (1, 0)):
        with pytest.raises(
            NotCertifiableError, match=f"made for actions that are {own} step.s. late, here they are {here}"
        ):
            certified_return(youla(plant, own), TASK, [0.02], episodes=1, delay=here)
    # The delay may as well be in the model that the controller was designed for.
    assert fitting_model(youla(plant, known=1), plant, 1).n == 3
    with pytest.raises(NotCertifiableError, match="another plant: A"):
        certified_return(youla(plant, known=1), TASK, [0.02], episodes=1)
    with pytest.raises(NotCertifiableError, match="a region is known without"):
        certified_return(direct(), "robust_policies/Pendulum-v0", [0.1], episodes=1, delay=1)


def test_a_loop_that_the_delay_makes_unstable_is_not_certified(plant):
    stiff = R2DN(1, 1, 1, features=1, hidden_sizes=(1,), guarantee=Contracting())
    with torch.no_grad():
        linear(stiff).C2.zero_()
        stiff.D22.fill_(-0.5)
    policy = direct(stiff)
    # u = -y: its loop is stable without the delay.
    assert np.abs(np.linalg.eigvals(plant.A - plant.B @ plant.C)).max() < 1
    late = certified_return(policy, TASK, [0.02], episodes=1, delay=4)
    assert late.status == "NOT_CERTIFIED" and "spectral radius 1.01" in late.reason
    assert "4 step(s) late" in late.claim and late.rows[0].certified is None
    swift = certified_return(youla(plant, 6, weight=0.01, limit=0.1), TASK, [0.02], episodes=1, delay=6)
    assert swift.status == "NOT_CERTIFIED" and "A - B K has spectral radius 1." in swift.reason


def test_the_file_has_the_delay_and_older_files_have_none(plant, tmp_path):
    torch.manual_seed(0)
    cell = make_cell("r2dn", 1, 1, **{**SIZES, "state_size": 2, "features": 3, "hidden_sizes": [3]})
    policy = direct(cell, 0.3)
    save_policy(policy, tmp_path, task=TASK)
    done = answer("certify", tmp_path, "--return", "--delay", 1, "--sizes", "0", "--episodes", 1)
    assert done.returncode == 0 and "1 step(s) late" in done.stdout and "off by 1 at every step" in done.stdout
    path = tmp_path / "return_certificate.json"
    found = ReturnCertificate.from_json(path)
    assert found.delay == 1
    # What an error of the sensor can do is of the late loop too.
    tried = playing(policy, plant, 1)
    moved, still = tried.play(torch.full(tried.shape, 0.01, dtype=torch.float64)), tried.play()
    force, *states = (*found.sensors[0].actions.values(), *found.sensors[0].states.values())
    assert float((moved.actions - still.actions).abs().max()) <= 0.01 * force
    assert ((moved.states - still.states).abs()[..., :2].amax((0, 1)).numpy() <= 0.01 * np.array(states)).all()
    content = json.loads(path.read_text())
    del content["delay"]
    path.write_text(json.dumps(content))
    assert ReturnCertificate.from_json(path).delay == 0
    assert "--delay was given without --return" in one_line(answer("certify", tmp_path, "--delay", 1))
