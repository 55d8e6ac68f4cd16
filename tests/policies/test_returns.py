"""The certified return: what is bounded is what is played, no attack gets below it, and what has none is refused."""

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line

from robust_policies.certificates.ball import NORMS
from robust_policies.control import lqg
from robust_policies.control.linear_model import from_matrices
from robust_policies.control.youla import Performance
from robust_policies.envs import load_plant
from robust_policies.envs.known import known_episodes
from robust_policies.envs.perturb import perturb
from robust_policies.envs.wrappers import NormalizeObservation
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError, UnknownNameError
from robust_policies.evaluation import run_episodes
from robust_policies.evaluation.certify_return import certify_return_run
from robust_policies.networks import R2DN, Contracting, make_cell
from robust_policies.policies import (
    DeployedPolicy,
    ReturnCertificate,
    YoulaOptions,
    YoulaPolicy,
    certified_return,
    return_clips,
    returns,
    save_policy,
)
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.playing import Playing

ID, STEPS = "robust_policies/MassSpringDamper-v0", 6
TASK = {"id": ID, "kwargs": {"max_episode_steps": STEPS}}
SIZES = {
    "r2dn": {"state_size": 2, "features": 3, "hidden_sizes": [3], "gamma": 0.5},
    "ren": {"state_size": 2, "features": 3, "gamma": 0.5},
    "lbdn": {"hidden_sizes": [4], "gamma": 0.5},
    "mlp": {"hidden_sizes": [4]},
    "lstm": {"state_size": 4},
}


def policy(kind="r2dn", action_scale=1.0, inputs=1, cell=None):
    torch.manual_seed(0)
    cell = make_cell(kind, inputs, 1, **SIZES[kind]) if cell is None else cell
    actor = Actor(ScaledCell(cell, Scaling(inputs, 0.5, 0.01)), MeanHead(1, 1, False, action_scale))
    box = spaces.Box(-np.inf, np.inf, (inputs,), np.float32)
    return DeployedPolicy(actor, box, spaces.Box(-2.0, 2.0, (1,), np.float32))


def youla(plant=None, weight=30.0, limit=0.5):
    """Return a Youla policy that answers to its innovations, for the plant's own model or for that of another."""
    plant = plant or load_plant("mass_spring_damper")
    given = {"W": plant.E @ plant.E.T, "V": plant.F @ plant.F.T, "Q": plant.Q, "R": weight * plant.R}
    limits = {"action_low": plant.action_low, "action_high": plant.action_high}
    model = from_matrices(plant.A, plant.B, plant.C, **given, **limits)
    options = YoulaOptions(limit=limit)
    free = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    torch.manual_seed(0)
    actor = Actor(ScaledCell(make_cell("r2dn", 1, 1, **SIZES["r2dn"]), Scaling(1)), MeanHead(1, 1, False, 0.1))
    inner = DeployedPolicy(actor, free, spaces.Box(-limit, limit, (1,), np.float32))
    outer = spaces.Box(-2.0, 2.0, (1,), np.float32)
    return YoulaPolicy(lqg.design(model), model, inner, observation_space=free, action_space=outer, options=options)


@pytest.mark.parametrize("kind", ["r2dn", "ren", "lbdn", "mlp", "youla"])
def test_every_kind_whose_loop_has_a_bound_is_certified(kind):
    given = youla() if kind == "youla" else policy(kind, 0.3)
    found = certified_return(given, TASK, [0.02, 0.0], episodes=3, seed=1)
    assert found.status == "PASS" and found.gain is not None and found.episodes == 3
    attacked, still = found.rows
    assert attacked.size == 0.02 and still.size == 0.0
    assert attacked.certified < attacked.found < attacked.nominal
    limit = found.unclipped_up_to
    if limit is None or limit < 0.02:
        assert attacked.triangle is None and attacked.constant is None
    else:
        assert attacked.triangle < attacked.constant <= attacked.certified
    assert still.certified == pytest.approx(still.nominal, rel=1e-9)
    played = run_episodes(given, ID, "l2", [0.0], 3, 1, env_kwargs={"max_episode_steps": STEPS})
    # The environment shows float32 observations.
    assert still.nominal == pytest.approx(played.returns.mean(), rel=1e-4)
    assert (
        "at any of these sizes" if limit is not None and limit > 0.02 else "which the bound includes"
    ) in found.claim


def test_other_norms_are_ordered_by_what_they_allow(monkeypatch):
    rows = {norm: certified_return(policy(), TASK, [0.05], norm, episodes=2).rows[0] for norm in NORMS}
    for row in rows.values():
        assert row.certified < row.found < row.nominal
    # With one sensor an l2 norm is a largest entry, and all steps together allow less than each.
    assert rows["per_step_linf"].certified == pytest.approx(rows["per_step_l2"].certified, rel=1e-3)
    assert rows["total_l2"].certified > rows["per_step_l2"].certified
    # Where nothing is known of how far an action moves, it may be clipped at every step.
    monkeypatch.setattr(return_clips, "reach_of", lambda *_: None)
    silent = certified_return(policy(), TASK, [0.05], episodes=1)
    assert silent.unclipped_up_to is None and silent.rows[0].triangle is None
    assert silent.rows[0].certified is None or silent.rows[0].certified < silent.rows[0].found


def test_the_loop_neuron_by_neuron_is_what_is_played():
    torch.manual_seed(1)
    cell = R2DN(1, 3, 1, features=4, hidden_sizes=(5, 4), activation="tanh", guarantee=Contracting(), rate=0.9)
    for parameter in cell.parameters():
        if parameter.ndim == 1 and parameter.numel() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    given = policy(cell=cell.double(), action_scale=0.7)
    plant = load_plant("mass_spring_damper")
    plant.action_high = np.full(1, 1e6)
    model, n = from_matrices(plant.A, plant.B, plant.C), 2
    weights = Performance.weighted(plant.Q, plant.R)
    performance = Performance(weights.Cz, weights.Dz, np.zeros((n, 0)), np.eye(1))
    running = given.running()
    loop = running.loop(model, performance).model
    known = known_episodes(plant, [5], 30)
    silent = known._replace(process=0 * known.process, measurement=0 * known.measurement)
    added = np.random.default_rng(0).standard_normal((30, 1, 1))
    playing = Playing(running, plant, silent, -np.full(1, np.inf), np.full(1, np.inf))
    played = playing.play(torch.as_tensor(added))
    z = played.states.numpy() @ weights.Cz.T + played.applied.numpy() @ weights.Dz.T
    e = cell.explicit()
    layers = [layer for layer in e.layers if layer.psi is not None]
    number = {name: getattr(e, name).detach().numpy() for name in ("bx", "bv", "by", "B1", "B2", "D12", "D21", "D22")}
    last = e.layers[-1].b.detach().numpy()
    folded = given.actor.folded()
    before, scale = folded.shift[0], folded.sizes[0]
    bias = [layer.b.detach().numpy() for layer in layers]
    bias[0] = bias[0] + layers[0].in_map().detach().numpy() @ (number["bv"] + number["D12"][:, 0] * before)
    u = scale * (number["by"] + number["D21"] @ last + number["D22"][:, 0] * before)
    inside = number["bx"] + number["B1"] @ last + number["B2"][:, 0] * before
    bx, bv = np.concatenate((plant.B @ u, inside)), np.concatenate(bias)
    state, w = np.concatenate((silent.start[0].numpy(), np.zeros(3))), np.zeros(len(bv))
    for t in range(30):
        for _ in layers:
            w = np.tanh(loop.C1 @ state + loop.D11 @ w + loop.D12 @ added[t, 0] + bv)
        expected = loop.C2 @ state + loop.D21 @ w + loop.D22 @ added[t, 0] + weights.Dz @ u
        np.testing.assert_allclose(expected, z[t, 0], atol=1e-12)
        state = loop.A @ state + loop.B1 @ w + loop.B2 @ added[t, 0] + bx
    np.testing.assert_allclose(played.cost.numpy(), np.square(z).sum((0, 2)), rtol=1e-12)


def test_the_attack_that_knows_the_noise_is_worse_than_one_that_does_not_and_no_worse_than_proven():
    settings = {"episodes": 4, "seed": 2, "env_kwargs": {"max_episode_steps": 12}}
    task, given = {"id": ID, "kwargs": settings["env_kwargs"]}, policy()
    proven = certified_return(given, task, [0.1], episodes=4, seed=2)
    assert proven.set_aside == 0
    whole, window = (
        run_episodes(given, ID, "closed_loop_pgd", [0.1], options={"steps": 4, "restarts": 2, **options}, **settings)
        for options in ({"search": "whole_episode"}, {"window": 4, "replan": 2})
    )
    assert whole.returns.mean() < window.returns.mean()
    assert (whole.returns[0] >= np.array(proven.each[0])).all()
    assert whole.returns.mean() == pytest.approx(proven.rows[0].found, rel=2e-3)


def test_what_an_environment_foresees_is_what_it_does():
    env = gymnasium.make_vec(ID, num_envs=3).unwrapped
    env.reset(seed=4)
    noise, state, action = env.foreseen(5), env.state, torch.full((3, 1), 0.2)
    for process, measurement in noise:
        seen, *_ = env.step(action)
        # In the environment's layout in memory, which decides in which order a product is added up.
        state = env.plant.advance(state, action.double(), env.prepared, process).T.contiguous().T
        assert torch.equal(env.state, state)
        assert torch.equal(seen, env.plant.observe(state, env.prepared, measurement).float())


def test_a_loop_without_a_bound_and_clipped_episodes_are_said():
    found = certified_return(policy("lstm"), TASK, [0.02], episodes=2)
    assert found.status == "NOT_CERTIFIED" and "gates" in found.reason and found.gain is None
    assert found.rows[0].certified is None and found.rows[0].found < found.rows[0].nominal
    assert "Nothing is proven" in found.claim and "gates" in found.claim


def test_clipped_episodes_are_part_of_the_bound_and_no_attack_on_the_clipped_plant_gets_below_it():
    given, sizes = youla(weight=0.3, limit=0.3), [0.0, 0.003, 0.03]
    found = certified_return(given, TASK, sizes, episodes=6, seed=1)
    assert found.status == "PASS" and found.set_aside == 0 and found.episodes == 6
    assert found.unclipped_up_to is None and "which the bound includes" in found.claim
    still, *rows = found.rows
    assert still.certified == pytest.approx(still.nominal, rel=1e-9) and still.clipped_share > 0.1
    for row, each in zip(rows, found.each[1:], strict=True):
        assert row.triangle is None and row.certified < row.found < row.nominal
        attacked = run_episodes(given, ID, "closed_loop_pgd", [row.size], 6, 1, env_kwargs={"max_episode_steps": STEPS},
                                options={"search": "whole_episode", "steps": 6, "restarts": 2})  # fmt: skip
        assert (attacked.returns[0] >= np.array(each) * (1 + 1e-6)).all()
    # Far tighter than an interval: at small sizes the bound stays near what is found.
    assert rows[0].certified - rows[0].found > 0.2 * rows[0].found


def test_a_size_of_which_nothing_is_proven_with_clipping_says_what_holds_without(monkeypatch):
    monkeypatch.setattr(returns.ClippedAlong, "bounds", lambda *_: None)
    found = certified_return(policy(), TASK, [0.0, 5.0], episodes=2)
    assert found.rows[1].certified is None and found.rows[1].unclipped < found.rows[0].nominal
    assert "nothing is proven with clipped actions" in found.claim and "one clipped action voids it" in found.claim


def test_a_size_at_which_an_action_may_be_clipped_is_said():
    found = certified_return(policy(), TASK, [5.0], episodes=2)
    assert found.unclipped_up_to < 5.0 and found.rows[0].certified < found.rows[0].found
    assert "which the bound includes" in found.claim and f"{found.unclipped_up_to:.3g}"[:3] in found.claim


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("robust_policies/MagLev-v0", "in a region for the pendulum and the cart-pole"),
        ({**TASK, "perturbations": [{"ObservationDelay": 2}]}, "a delay that the loop of the proof does not have"),
        ({"id": ID, "kwargs": {"randomize": {"A": (0.9, 1.1)}}}, "randomize"),
        ("Pendulum-v1", "another package"),
    ],
)
def test_a_task_that_is_not_the_models_is_refused(task, words):
    inputs = 3 if "Pendulum" in str(task) else 1
    kind = (NotCertifiableError, InvalidValueError, UnknownNameError)
    with pytest.raises(kind, match=words):
        certified_return(policy(inputs=inputs), task, [0.1], episodes=1)


def test_what_stands_around_an_environment_is_refused():
    made = gymnasium.make_vec(ID, num_envs=2)
    with pytest.raises(NotCertifiableError, match="ObservationDelay stands around"):
        certified_return(policy(), perturb(made, [{"ObservationDelay": 1}]), [0.1], episodes=1)
    with pytest.raises(NotCertifiableError, match="a normaliser that learns"):
        certified_return(policy(), NormalizeObservation(made), [0.1], episodes=1)
    assert certified_return(policy(), made, [0.0], episodes=1).rows[0].nominal < 0


def test_a_policy_of_another_plant_and_wrong_arguments_are_refused():
    with pytest.raises(NotCertifiableError, match="made for another plant: A"):
        certified_return(youla(load_plant("double_integrator")), TASK, [0.1], episodes=1)
    with pytest.raises(ShapeError, match="reads 2 number"):
        certified_return(policy(inputs=2), TASK, [0.1], episodes=1)
    with pytest.raises(InvalidValueError, match="sizes are"):
        certified_return(policy(), TASK, [0.1, -0.1])
    with pytest.raises(UnknownNameError, match="per_step_l3"):
        certified_return(policy(), TASK, [0.1], "per_step_l3")
    with pytest.raises(InvalidValueError, match="deployed one"):
        certified_return(SimpleNamespace(), TASK, [0.1])


def test_a_folder_gets_its_file_and_the_command_says_it(tmp_path):
    save_policy(policy(), tmp_path, task=TASK)
    found = certify_return_run(tmp_path, episodes=2)
    # Half, once, twice and five times the sensor's noise of 0.02 m.
    assert [row.size for row in found.rows] == pytest.approx([0.01, 0.02, 0.04, 0.1])
    path = tmp_path / "return_certificate.json"
    assert ReturnCertificate.from_json(path) == found
    done = answer("certify", tmp_path, "--return", "--sizes", "0.01,0.03", "--norm", "total_l2", "--episodes", 1)
    assert done.returncode == 0 and done.stdout.startswith("PASS: For each of 1 episodes")
    assert "measured position [m] off by 1 at every step moves" in done.stdout
    again = ReturnCertificate.from_json(path)
    assert again.norm == "total_l2" and [row.size for row in again.rows] == [0.01, 0.03]
    assert "sizes are" in one_line(answer("certify", tmp_path, "--return", "--sizes=-1"))
    assert "--norm was given without --return" in one_line(answer("certify", tmp_path, "--norm", "total_l2"))
    save_policy(policy("lstm"), tmp_path, task=TASK)
    done = answer("certify", tmp_path, "--return", "--episodes", 1, "--sizes", "0.1")
    assert done.returncode == 1 and "NOT_CERTIFIED" in done.stdout
