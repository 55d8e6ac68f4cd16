"""Imitation: how well a student learns, what its run folder says, and that a run goes on where it was."""

import json

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.control.linearize import linearize_plant
from robust_policies.envs.task import load_plant
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.evaluation import certify_run
from robust_policies.policies import (
    DeployedPolicy,
    YoulaPolicy,
    YoulaVectorWrapper,
    YoulaWrapper,
    load_policy,
    save_policy,
)
from robust_policies.policies.feedback import closed_loop_bound
from robust_policies.train import TrainingInterruptedError, imitate, load_recipe, open_run
from robust_policies.train.actor import new_actor
from robust_policies.train.imitate import imitation_recipe
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.imitation.teacher import LQGTeacher, PolicyTeacher, PredictTeacher, teacher_of
from robust_policies.train.recipe.sections import TaskSection
from robust_policies.train.run.stop import StopRequest

MASS = "robust_policies/DoubleIntegrator-v0"
CART = "robust_policies/CartPoleContinuous-v0"
SMALL = {"state_size": 4, "features": 4, "hidden_sizes": [8]}
SHORT = {"id": MASS, "num_envs": 8, "kwargs": {"max_episode_steps": 30}}
QUICK = {"rounds": 2, "updates": 10, "held_out": 4}
FEW = {"certify_every": 0, "evaluate_episodes": 4}


def found(folder, name="imitation.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """The run folder of a double integrator's LQG, learnt with a penalty on unproven loops."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cloned") / "run"
    imitate("lqg", MASS, folder, gamma=5.0, algorithm={"rounds": 3, "updates": 150, "closed_loop_weight": 0.1},
            checkpoints={"certify_every": 0, "evaluate_episodes": 16})  # fmt: skip
    return folder


def test_the_optimal_controller_is_learnt_to_a_small_error_and_costs_as_little(cloned):
    said = found(cloned)
    assert said["held_out_mse"][0] < 0.05 * said["held_out_variance"][0]
    assert said["own_trajectories_mse"][0] < 0.1 * said["held_out_variance"][0]
    assert said["student_return"] > 1.05 * said["teacher_return"]
    assert said["demonstrations"] == 48 and len(said["rounds"]) == 3
    # What the teacher itself is, from measurement to force.
    assert 3.2 < said["teacher_gain"] < 3.3 and said["teacher_radius"] < 1


def test_the_student_passes_its_certificate_and_the_loop_is_proven(cloned):
    certificate = certify_run(cloned, steps=10)
    assert certificate.status == "PASS" and certificate.gamma_raw is not None
    assert certificate.gamma_raw <= 5.0 * (1 + 1e-3)
    said = found(cloned, "closed_loop.json")
    assert said["proven"] and said["rate"] < 1 and said["neurons"] < 1 and said["gain"] > 0
    assert said["small_gain"] is None and said["plant_radius"] == pytest.approx(1.0)
    # The folder's numbers are those of the policy in it.
    again = closed_loop_bound(load_policy(cloned), linearize_plant(load_plant("double_integrator")))
    assert again.gain == pytest.approx(said["gain"], rel=1e-6) and again.rate == pytest.approx(said["rate"], rel=1e-6)


def test_two_copies_of_the_proven_loop_come_together(cloned):
    said = found(cloned, "closed_loop.json")
    model = linearize_plant(load_plant("double_integrator"))
    actor = load_policy(cloned).actor.double()
    generator = np.random.default_rng(0)
    x, state = torch.tensor([[0.05, 0.0], [-0.05, 0.02]], dtype=torch.float64), actor.cell.initial_state(2)
    A, B, C = (torch.as_tensor(matrix) for matrix in (model.A, model.B, model.C))
    with torch.no_grad():
        for _ in range(1500):
            w = torch.as_tensor(generator.normal(size=2) * [0.0, 0.002])
            u, state = actor.step(x @ C.T + 0.002 * generator.normal(), state)
            assert u.abs().max() < 1.0
            x = x @ A.T + u @ B.T + w
    assert (x[0] - x[1]).norm() < 1e6 * said["rate"] ** 1500 + 1e-12


def test_the_folder_is_a_run_folder_whose_recipe_trains_again(cloned):
    run = open_run(cloned)
    recipe = run.read_recipe()
    assert recipe.algorithm.name == "imitation" and recipe.policy.gamma == 5.0
    assert load_recipe(run.recipe).resolved() == recipe.resolved()
    assert run.read_provenance()["num_timesteps"] == 3 * 16 * 200
    policy = load_policy(cloned)
    env = gymnasium.make(MASS)
    observation, _ = env.reset(seed=0)
    action, state = policy.predict(observation)
    assert action.shape == (1,) and state.shape == (1, 8)


@pytest.mark.soak
def test_dagger_learns_to_recover_where_cloning_drifts(tmp_path):
    """Ten demonstrations of 60 steps: while the teacher acts the pole hardly leans, so cloning sees nothing else."""
    task = {"id": CART, "num_envs": 2, "kwargs": {"max_episode_steps": 200}}
    returns, own = {"bc": [], "dagger": []}, {"bc": [], "dagger": []}
    for method in returns:
        for seed in range(3):
            imitate(
                "lqg", task, tmp_path / f"{method}{seed}", seed=seed, policy={"state_size": 6},
                algorithm={"method": method, "rounds": 5, "updates": 40, "horizon": 60, "batch_size": 8},
                checkpoints={"certify_every": 0, "evaluate_every": 10**6, "evaluate_episodes": 16},
            )  # fmt: skip
            said = found(tmp_path / f"{method}{seed}")
            returns[method].append(said["student_return"])
            own[method].append(said["own_trajectories_mse"][0])
    assert np.mean(returns["dagger"]) > np.mean(returns["bc"]) + 20
    assert np.mean(own["dagger"]) < 0.8 * np.mean(own["bc"])


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(tmp_path):
    given = dict(gamma=3.0, policy=SMALL, algorithm={**QUICK, "rounds": 3}, checkpoints=FEW)
    imitate("lqg", SHORT, tmp_path / "whole", **given)
    asked = []

    class Stops(StopRequest):
        @property
        def requested(self):
            asked.append(1)
            return len(asked) > 1

        @requested.setter
        def requested(self, value):
            pass

    with pytest.raises(TrainingInterruptedError, match="10 of 30"):
        imitate("lqg", SHORT, tmp_path / "parts", stop=Stops(), **given)
    assert not (tmp_path / "parts" / "policy.json").exists()
    imitate("lqg", SHORT, tmp_path / "parts", resume=True, **given)
    one, other = (load_policy(tmp_path / name).actor.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found(tmp_path / "whole") == found(tmp_path / "parts")


def test_a_folder_in_use_or_of_another_run_is_refused(cloned):
    with pytest.raises(InvalidValueError, match="not empty"):
        imitate("lqg", MASS, cloned, gamma=5.0)
    with pytest.raises(InvalidValueError, match="changed recipe"):
        imitate("lqg", MASS, cloned, gamma=6.0, resume=True)


def test_a_trained_policy_teaches_a_smaller_gain(cloned, tmp_path):
    imitate(cloned, None, tmp_path / "run", gamma=2.0, policy=SMALL, algorithm={**QUICK, "horizon": 50, "updates": 40},
            checkpoints=FEW)  # fmt: skip
    said, recipe = found(tmp_path / "run"), open_run(tmp_path / "run").read_recipe()
    assert recipe.task.id == MASS and said["teacher"] == str(cloned)
    assert said["held_out_mse"][0] < said["held_out_variance"][0]
    assert load_policy(tmp_path / "run").certificate().gamma_raw <= 2.0 * (1 + 1e-3)


@pytest.mark.parametrize(
    "cell", ["lbdn", "lstm", *(pytest.param(cell, marks=pytest.mark.soak) for cell in ("ren", "mlp"))]
)
def test_any_cell_can_be_the_student(cell, tmp_path):
    gamma = 3.0 if cell in ("lbdn", "ren") else None
    imitate("lqg", SHORT, tmp_path / "run", gamma=gamma, policy={"cell": cell}, algorithm=QUICK, checkpoints=FEW)
    rounds = found(tmp_path / "run")["rounds"]
    assert rounds[-1]["train/loss"] < rounds[0]["train/loss"]
    assert load_policy(tmp_path / "run").cell.name == cell
    assert "Closed loop" in found(tmp_path / "run", "closed_loop.json")["claim"]


class Push:
    """A controller of one's own: a force against the position, remembered from one step to the next."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        past = np.zeros_like(observation) if state is None else state * ~episode_start[:, None]
        return -0.5 * observation - 0.2 * past, observation


def test_any_object_with_predict_can_teach(tmp_path):
    imitate(
        Push(), SHORT, tmp_path / "run", gamma=3.0, policy=SMALL, algorithm={**QUICK, "updates": 40}, checkpoints=FEW
    )
    said = found(tmp_path / "run")
    assert said["teacher"] == "given" and said["held_out_mse"][0] < 0.1 * said["held_out_variance"][0]
    with pytest.raises(InvalidValueError, match="no object was given"):
        imitate("given", MASS, tmp_path / "again")
    with pytest.raises(InvalidValueError, match="expected a policy of this package"):
        imitate(object(), MASS, tmp_path / "again")


def test_demonstrations_stay_on_the_device_and_are_labelled_where_the_student_went():
    stage = Stage(TaskSection(id=MASS), 5, "cpu")
    teacher = teacher_of("lqg", None, stage.env, "cpu")
    student = load_student(stage)
    played = stage.play(7, 20, teacher, student, chance=0.0)
    data = played.demonstrations
    assert data.observations.shape == (20, 5, 1) and data.labels.shape == (20, 5, 1) and data.starts.shape == (20, 5)
    assert data.observations.device == stage.device
    assert data.starts[0].all() and not data.starts[1:].any()
    assert not torch.equal(played.actions, data.labels)
    with torch.no_grad():
        means, _ = student(data.observations, None, data.starts)
    torch.testing.assert_close(played.actions, means.clamp(stage.low, stage.high), rtol=1e-5, atol=1e-6)
    taught = stage.play(7, 20, teacher, student, chance=1.0)
    assert torch.equal(taught.actions, taught.demonstrations.labels)
    some = stage.play(7, 200, teacher, student, chance=0.3)
    share = (some.actions == some.demonstrations.labels).float().mean()
    assert 0.2 < float(share) < 0.4


def load_student(stage):
    recipe = imitation_recipe("lqg", MASS, gamma=3.0)
    return new_actor(recipe.policy, stage.observation_size, stage.action_space, 0)


def test_the_lqg_teacher_does_what_a_youla_wrapper_with_no_input_does():
    stage = Stage(TaskSection(id=CART), 3, "cpu")
    played = stage.play(4, 40, teacher_of("lqg", None, stage.env, "cpu"))
    env = YoulaVectorWrapper(gymnasium.make_vec(CART, num_envs=3))
    env.reset(seed=4)
    for t in range(40):
        info = env.step(torch.zeros(3, 1))[4]
        torch.testing.assert_close(info["applied_input"].float(), played.actions[t], rtol=1e-6, atol=1e-7)


def test_a_youla_policy_teaches_with_the_input_that_was_applied(tmp_path):
    """Its observer must hear of the student's actions, or it labels situations that are not there."""
    env = YoulaWrapper(gymnasium.make(MASS))
    inner = load_student(Stage(TaskSection(id=MASS), 1, "cpu"))
    inner.cell.zero_output_()
    policy = YoulaPolicy.of(env, DeployedPolicy(inner, env.observation_space, env.action_space))
    save_policy(policy, tmp_path / "teacher")
    stage = Stage(TaskSection(id=MASS), 4, "cpu")
    teacher, reference = (
        teacher_of(str(tmp_path / "teacher"), None, stage.env, "cpu"), teacher_of("lqg", None, stage.env, "cpu")
    )  # fmt: skip
    assert isinstance(teacher, PolicyTeacher) and isinstance(reference, LQGTeacher)
    student = load_student(stage)
    one, other = (stage.play(3, 30, each, student, chance=0.5).demonstrations.labels for each in (teacher, reference))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_memory_begins_anew_with_its_episode():
    stage = Stage(TaskSection(id=MASS, kwargs={"max_episode_steps": 5}), 2, "cpu")
    played = stage.play(0, 12, PredictTeacher(Push()))
    data = played.demonstrations
    assert data.starts[:, 0].nonzero().squeeze(-1).tolist() == [0, 5, 10]
    expected = -0.5 * data.observations
    expected[1:] -= 0.2 * data.observations[:-1] * ~data.starts[1:].unsqueeze(-1)
    torch.testing.assert_close(data.labels, expected.clamp(-1, 1))
    assert played.lengths.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("teacher", "task", "algorithm", "words"),
    [
        ("lqg", "Pendulum-v1", {}, "no equations known here"),
        ("lqg", None, {}, "No task was given"),
        ("lgq", MASS, {}, "no such file or folder"),
        ("lqg", "robust_policies/CartPole-v0", {}, "needs a Box"),
        ("lqg", MASS, {"rounds": 0}, "algorithm.rounds is 0"),
        ("lqg", MASS, {"mixing": 1.0}, "algorithm.mixing is 1.0"),
        ("lqg", MASS, {"learning_rate": "sin_1"}, "lin_NUMBER"),
        ("lqg", "robust_policies/Nowhere-v0", {}, "Nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(teacher, task, algorithm, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        imitate(teacher, task, tmp_path / "run", algorithm=algorithm)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_the_penalty_cannot_judge_is_refused(tmp_path):
    weighed = {**QUICK, "closed_loop_weight": 1.0}
    with pytest.raises(InvalidValueError, match=r"policy\.cell is 'mlp'"):
        imitate("lqg", MASS, tmp_path / "run", policy={"cell": "mlp"}, algorithm=weighed)
    with pytest.raises(InvalidValueError, match="not known here"):
        imitate(Push(), "Pendulum-v1", tmp_path / "run", algorithm=weighed)


def test_a_teacher_of_another_task_is_refused(cloned, tmp_path):
    with pytest.raises(ShapeError, match="The teacher reads"):
        imitate(cloned, CART, tmp_path / "run")


def test_settings_of_ppo_are_refused():
    with pytest.raises(InvalidValueError, match=r"policy.critic is 'mlp'"):
        imitation_recipe("lqg", MASS, {"policy": {"critic": "mlp"}})
