"""The certified return in a region: it holds every attack, no attack gets below the bound, and what has none."""

import json

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from robust_policies.certificates.ball import NORMS, unit
from robust_policies.certificates.channels import channels_of, closed
from robust_policies.control import lqg
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.scope import enclosed_plant
from robust_policies.control.youla import Performance
from robust_policies.envs import load_plant
from robust_policies.envs.known import known_episodes, seeds_of
from robust_policies.envs.task import task_file
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.evaluation import run_episodes
from robust_policies.evaluation.certify_return import certify_return_run
from robust_policies.networks import make_cell
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
from robust_policies.policies.region_loop import box_loop

STEPS, EPISODES, SIZES = 10, 3, [0.004, 0.02, 1.0]
ID = "robust_policies/Pendulum-v0"
PENDULUM = {"observed": ["sin"], "reset": {"angle": 0.05, "speed": 0.05}, "randomize": {}}


def actor(inputs, scale):
    torch.manual_seed(0)
    cell = make_cell("r2dn", inputs, 1, state_size=2, features=3, hidden_sizes=[3], gamma=0.5)
    return Actor(ScaledCell(cell, Scaling(inputs)), MeanHead(1, 1, False, scale))


def youla(plant, scale=0.01, limit=0.1, **weights):
    """Return a Youla policy about the upright."""
    model = linearize_plant(plant, np.zeros(plant.state_size), np.zeros(1))
    free = spaces.Box(-np.inf, np.inf, (model.p,), np.float32)
    inner = DeployedPolicy(actor(model.p, scale), free, spaces.Box(-limit, limit, (1,), np.float32))
    high = plant.action_high.astype(np.float32)
    outer, options = spaces.Box(-high, high, (1,), np.float32), YoulaOptions(limit=limit)
    design = lqg.design(model, **weights)
    return YoulaPolicy(design, model, inner, observation_space=free, action_space=outer, options=options)


def folder(path, base, **changed):
    """Return the folder of a task that differs from one of the package's."""
    content = yaml.safe_load(task_file(base).read_text())
    for key, value in changed.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and value else value
    path.mkdir(exist_ok=True)
    (path / "task.yaml").write_text(yaml.safe_dump(content))
    return str(path)


def upright(plant):
    return youla(
        plant, 0.01, 0.3, Q=np.diag([10.0, 1.0]), R=1e-3 * np.eye(1), W=np.diag([1e-6, 1e-3]), V=1e-3 * np.eye(1)
    )


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """Return (task, plant, policy, certificate)."""
    path = folder(tmp_path_factory.mktemp("tasks") / "upright", "pendulum", **PENDULUM)
    task = {"id": ID, "kwargs": {"task": path, "max_episode_steps": STEPS}}
    plant = load_plant(path)
    policy = upright(plant)
    return task, plant, policy, certified_return(policy, task, SIZES, episodes=EPISODES, seed=1)


def test_a_pendulum_near_the_upright_is_certified_up_to_a_size(pendulum):
    task, _, policy, found = pendulum
    assert found.status == "PASS" and found.episodes == EPISODES
    for row in found.rows[:2]:
        assert row.triangle < row.constant <= row.certified < row.found < row.nominal
        assert row.clipped_share == 0.0
    limit = found.region["size_up_to"]
    assert 0.02 < limit == found.unclipped_up_to < 1.0
    assert found.rows[2].certified is None and "at most 1 nothing is proven" in found.claim
    assert f"{limit:.3g}"[:4] in found.claim and "angle [rad]" in found.claim and "float64" in found.claim
    played = run_episodes(policy, ID, "l2", [0.0], EPISODES, 1, env_kwargs=task["kwargs"])
    assert found.rows[0].nominal == pytest.approx(played.returns.mean(), rel=1e-3)


def test_no_attack_leaves_the_region_or_gets_below_the_bound(pendulum):
    _, plant, policy, found = pendulum
    known = known_episodes(plant, seeds_of(1, EPISODES), STEPS)
    playing = Playing(policy.running(), plant, known, plant.action_low, plant.action_high)
    low, high = np.array(found.region["low"]), np.array(found.region["high"])
    moved, limit = np.array(found.region["moved_per_size"]), found.region["size_up_to"]
    nominal = inside(playing.play())
    generator = torch.Generator().manual_seed(0)
    widest = 0.0
    for size, bound in [(limit, None), *zip(SIZES[:2], found.each, strict=False)]:
        attacks = [playing.worst("per_step_l2", size, [], 8, 0)]
        attacks += [torch.full(playing.shape, sign * size, dtype=torch.float64) for sign in (1.0, -1.0)]
        attacks += [size * unit("per_step_l2", torch.randn(playing.shape, generator=generator).double()) for _ in "ab"]
        for added in attacks:
            played = playing.play(added)
            path = inside(played)
            assert (low <= path).all() and (path <= high).all()
            assert (np.abs(path - nominal) <= size * moved).all()
            widest = max(widest, float((np.abs(path - nominal) / (size * moved)).max()))
            assert bound is None or (-played.cost.numpy() >= np.array(bound)).all()
    # An attack of ten times the size leaves it, so that the test can fail.
    far = inside(playing.play(10.0 * limit / size * attacks[0]))
    assert widest > 0.5 and ((far < low) | (far > high)).any()


def inside(played):
    return torch.cat((played.states, played.signals[..., -1:]), -1).detach().numpy()


@pytest.mark.parametrize(
    ("base", "half"), [("pendulum", [0.4, 2.0, 2.0]), ("cartpole_continuous", [2.0, 1.0, 0.2, 1.0, 10.0])]
)
def test_the_bounds_hold_the_jacobian_at_random_points(base, half):
    plant, half = load_plant(base), np.array(half)
    low, high = enclosed_plant(plant, -half, half)
    points = torch.as_tensor(np.random.default_rng(3).uniform(-half, half, (10_000, len(half)))).requires_grad_()
    n, params = plant.state_size, plant.prepare(plant.nominal())
    following = plant.advance(points[:, :n], points[:, n:], params)
    outputs = torch.cat((following, plant.observe(points[:, :n], params)), -1)
    for row, column in enumerate(outputs.unbind(-1)):
        (slope,) = torch.autograd.grad(column.sum(), points, retain_graph=True)
        assert (low[row] <= slope.numpy() + 1e-15).all() and (slope.numpy() <= high[row] + 1e-15).all()
    assert enclosed_plant(plant, -10 * half, 10 * half) is None


def test_channels_at_any_slope_are_the_plant_with_that_jacobian():
    plant = load_plant("cartpole_continuous")
    plant.cos_sin = False
    model = linearize_plant(plant, np.zeros(4), np.zeros(1))
    half, rng = np.array([0.1, 0.5, 0.1, 0.5, 5.0]), np.random.default_rng(0)
    low, high = enclosed_plant(plant, -half, half)
    linear = np.block([[model.A, model.B], [model.C, np.zeros((4, 1))]])
    # The observation of the cart-pole is its state; let it have slopes as well.
    low[4, 0] -= 0.1
    high[5, 2] += 0.2
    channels = channels_of(low, high, linear)
    order = np.argsort(channels.rows >= 4, kind="stable")
    rows, columns, lower, width = (part[order] for part in channels)
    states, k = int((rows < 4).sum()), len(rows)
    running = DeployedPolicy(actor(4, 0.1), spaces.Box(-9, 9, (4,)), spaces.Box(-10, 10, (1,))).running()
    pick = np.eye(5)[columns]
    Cz, Dz = np.vstack((np.eye(4), pick[:, :4])), np.vstack((np.zeros((4, 1)), pick[:, 4:]))
    Dv = np.hstack((np.eye(4)[:, rows[states:] - 4], np.eye(4)))
    late = (np.arange(k) < states) & (columns >= 4)
    around = closed(running.loop(model, Performance(Cz, Dz, np.eye(4)[:, rows[:states]], Dv)), lower, width, late).model
    assert k > 6 and (np.triu(around.D11) == 0).all()
    share = rng.uniform(0, 1, k)
    moved = linear.copy()
    np.add.at(moved, (rows, columns), lower + share * width)
    plain = Performance(np.eye(4), np.zeros((4, 1)), np.zeros((4, 0)), np.eye(4))
    changed = type(model)(A=moved[:4, :4], B=moved[:4, 4:], C=moved[4:, :4])
    other = running.loop(changed, plain).model
    slopes = np.ones(around.sizes[1])
    early = int((~late).sum())
    inner = rng.uniform(0, 1, other.sizes[1])
    slopes[:early], slopes[early : early + len(inner)] = share[~late], inner
    slopes[early + len(inner) :] = share[late]
    np.testing.assert_allclose(*(response(one, s) for one, s in ((around, slopes), (other, inner))), atol=1e-9)


def response(model, slopes):
    """Return the outputs of a system whose neurons have these slopes, over some steps of a fixed input."""
    inverse = np.linalg.inv(np.eye(len(slopes)) - np.diag(slopes) @ model.D11)
    x, found, inputs = np.zeros(len(model.A)), [], np.random.default_rng(9).standard_normal((12, model.sizes[2]))
    for d in inputs:
        w = inverse @ (slopes * (model.C1 @ x + model.D12 @ d))
        found.append(model.C2 @ x + model.D21 @ w + model.D22 @ d)
        x = model.A @ x + model.B1 @ w + model.B2 @ d
    return np.array(found)


def test_starts_and_slopes_that_no_region_holds_are_said(pendulum, tmp_path):
    _, plant, policy, _ = pendulum
    task = folder(tmp_path / "wide", "pendulum", **{**PENDULUM, "reset": {"angle": 0.8, "speed": 0.05}})
    found = certified_return(
        policy, {"id": ID, "kwargs": {"task": task, "max_episode_steps": STEPS}}, [0.001], episodes=2
    )
    assert found.status == "NOT_CERTIFIED" and found.rows[0].certified is None and found.region is None
    assert "start nearer to the equilibrium" in found.claim
    running, model = policy.running(), policy.model
    wide = np.array([3.0, 1.0, 1.0])
    reason = box_loop(running.loop, model, plant, np.zeros(1, bool), (-wide, wide), STEPS, "per_step_l2")
    assert isinstance(reason, str) and "no metric was found" in reason
    clipped = np.array([1.0, 9.0, 1.0])
    reason = box_loop(running.loop, model, plant, np.zeros(1, bool), (-clipped, clipped), STEPS, "per_step_l2")
    assert isinstance(reason, str) and "clipped" in reason


def test_a_size_beyond_the_region_alone_is_not_certified(pendulum):
    task, _, policy, before = pendulum
    task = {**task, "kwargs": {**task["kwargs"], "max_episode_steps": 5}}
    found = certified_return(policy, task, [0.5], "total_l2", episodes=1, seed=1)
    assert found.status == "NOT_CERTIFIED" and found.region["size_up_to"] < 0.5
    assert f"{found.region['size_up_to']:.3g}" in found.claim and found.each == ()
    assert found.norm in NORMS and found.region["size_up_to"] > before.region["size_up_to"]


def test_a_folder_without_sizes_is_asked_for_them(pendulum, tmp_path):
    task, _, policy, _ = pendulum
    save_policy(policy, tmp_path, task=task)
    with pytest.raises(InvalidValueError, match="give --sizes"):
        certify_return_run(tmp_path)
    assert certify_return_run(tmp_path, [0.0], episodes=1).sensors == ()


def test_the_cart_pole_is_certified_where_it_balances(tmp_path):
    small = {"reset": {"spread": 0.01}, "randomize": {}}
    path, name = folder(tmp_path / "cart", "cartpole_continuous", **small), "robust_policies/CartPoleContinuous-v0"
    plant = load_plant(path)
    task = {"id": name, "kwargs": {"task": path, "max_episode_steps": 4}}
    found = certified_return(youla(plant, 0.001), task, [0.001, 0.0], "per_step_linf", episodes=2)
    attacked, still = found.rows
    assert found.status == "PASS" and found.region["size_up_to"] > 0.001
    assert attacked.certified < attacked.found < attacked.nominal <= 4.0
    assert still.certified == pytest.approx(still.nominal, rel=1e-9)
    assert found.region["high"][2] < plant.limits.angle
    other = folder(tmp_path / "swing", "cartpole_continuous", **small, reward="alive")
    with pytest.raises(NotCertifiableError, match="no sum of squares"):
        certified_return(youla(plant, 0.001), {"id": name, "kwargs": {"task": other}}, [0.001], episodes=1)


def test_the_file_holds_the_region_and_older_files_have_none(pendulum, tmp_path):
    found = pendulum[3]
    path = found.to_json(tmp_path / "return_certificate.json")
    assert ReturnCertificate.from_json(path) == found
    content = json.loads(path.read_text())
    del content["region"]
    path.write_text(json.dumps(content))
    assert ReturnCertificate.from_json(path).region is None
