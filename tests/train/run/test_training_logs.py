"""What a run says while it trains: TensorBoard's scalars and the display."""

import functools
import io
import signal

import pytest
import torch
from event_files import scalars
from rich.console import Console
from soak_cases import some_soak
from stopping import stop_at
from tiny_recipe import TINY

from robust_policies.certificates import empirical_gain
from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.errors import NotCertifiableError
from robust_policies.policies import load_policy
from robust_policies.train import TrainingInterruptedError, load_recipe, open_run, train
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.progress import Bar, Lines

NUMBERS = ["checkpoints.certify_every=2"]
APG = [*TINY[:4], "algorithm.horizon=20", "algorithm.total_steps=1600", *TINY[8:], "checkpoints.certify_every=8"]
RECIPES = {
    "recurrent_ppo": ("pendulum_r2dn_gamma6", [*TINY, *NUMBERS]),
    "tensor_ppo": ("pendulum_r2dn_gamma6", [*TINY, *NUMBERS, "algorithm.name=tensor_ppo"]),
    "apg": ("pendulum_r2dn_apg", APG),
}
COMMON = {
    "rollout/ep_rew_mean", "rollout/ep_len_mean", "train/loss", "train/value_loss", "train/gradient_norm",
    "train/learning_rate", "time/fps", "time/rollout_seconds", "time/evaluation_seconds", "time/certificate_seconds",
    "time/checkpoint_seconds", "eval/mean_reward", "eval/mean_ep_length", "certificate/gamma", "certificate/margin",
    "certificate/found_gain",
}  # fmt: skip
OF_PPO = {
    "train/approx_kl", "train/clip_fraction", "train/clip_range", "train/entropy_loss", "train/explained_variance",
    "train/policy_gradient_loss", "train/std", "time/update_seconds",
}  # fmt: skip
TAGS = {
    "recurrent_ppo": COMMON | OF_PPO,
    "tensor_ppo": COMMON | OF_PPO | {f"time/{name}_seconds" for name in ("policy", "environment", "advantages")},
    "apg": COMMON | {"time/gradient_seconds", "time/value_seconds", "rollout/step_reward_mean", "train/n_updates"},
}


def recipe_of(algorithm, *more):
    name, assignments = RECIPES[algorithm]
    return load_recipe(name, [*assignments, *more])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Return a function that trains an algorithm before a terminal or a file, once: run folder and what was shown."""
    torch.set_num_threads(1)

    @functools.cache
    def done(algorithm, terminal=True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
        folder = tmp_path_factory.mktemp(algorithm) / "run"
        recipe = recipe_of(algorithm, "checkpoints.every=800", *([] if terminal else ["checkpoints.keep=last"]))
        train(recipe, folder, reporter=Bar(console) if terminal else Lines(console, every=0.0))
        return open_run(folder), console.file.getvalue()

    return done


@pytest.mark.parametrize("algorithm", RECIPES)
def test_the_scalars_are_there_where_they_belong(algorithm, shown):
    run, _ = shown(algorithm)
    tags = scalars(run)
    assert set(tags) == TAGS[algorithm]
    every = 80 if algorithm == "apg" else 400
    steps = list(range(every, 1601, every))
    for tag in ("train/gradient_norm", "train/loss", "time/rollout_seconds", "time/fps"):
        assert [step for step, _ in tags[tag]] == steps, tag
    certificates = [640, 1280, 1600] if algorithm == "apg" else [800, 1600]
    for tag in ("certificate/gamma", "certificate/margin", "certificate/found_gain", "time/certificate_seconds"):
        assert [step for step, _ in tags[tag]] == certificates, tag
    assert all(value > 0 for _, value in tags["train/gradient_norm"])
    assert all(value >= 0 for tag in tags if tag.endswith("_seconds") for _, value in tags[tag])
    for (_, found), (_, proven) in zip(tags["certificate/found_gain"], tags["certificate/gamma"], strict=True):
        assert found <= proven * (1 + 1e-6)


def test_the_certificate_in_the_log_is_that_of_the_policy(shown):
    run, _ = shown("tensor_ppo", terminal=False)
    policy, tags = load_policy(run.path), scalars(run)
    assert run.read_recipe().checkpoints.keep == "last"
    certificate = policy.certificate()
    assert tags["certificate/gamma"][-1][1] == pytest.approx(certificate.gamma_raw, rel=1e-6)
    assert tags["certificate/margin"][-1][1] == pytest.approx(certificate.margin, rel=1e-4)
    assert tags["certificate/found_gain"][-1][1] <= empirical_gain(policy).gain * (1 + 1e-6)


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
def test_looking_at_the_gain_changes_nothing_else(algorithm, tmp_path):
    for name, every in (("often", 1), ("never", 0)):
        train(recipe_of(algorithm, f"checkpoints.certify_every={every}", "algorithm.total_steps=800"), tmp_path / name)
    often, never = (tmp_path / name / "policy.safetensors" for name in ("often", "never"))
    assert often.read_bytes() == never.read_bytes()
    assert not [tag for tag in scalars(open_run(tmp_path / "never")) if tag.startswith("certificate/")]


def test_a_policy_without_a_provable_gain_has_the_found_one_alone(tmp_path):
    name, assignments = "pendulum_lstm", [*TINY[:2], *TINY[4:], *NUMBERS, "algorithm.total_steps=800"]
    train(load_recipe(name, assignments), tmp_path / "run")
    tags = scalars(open_run(tmp_path / "run"))
    assert [tag for tag in tags if tag.startswith("certificate/")] == ["certificate/found_gain"]
    with pytest.raises(NotCertifiableError):
        load_policy(tmp_path / "run").certificate()


def test_of_choices_the_gain_is_that_of_the_logits(tmp_path):
    more = ["task.id=robust_policies/CartPole-v0", "policy.observation_scale=null", "policy.action_scale=null"]
    train(recipe_of("tensor_ppo", "algorithm.total_steps=800", *more), tmp_path / "run")
    policy = load_policy(tmp_path / "run")
    found, proven = certified(policy), policy.certificate()
    assert "logits of the choices" in proven.claim
    assert 0 < found["certificate/found_gain"] <= found["certificate/gamma"] == proven.gamma_raw
    assert make_sb3_vec_env("robust_policies/CartPole-v0").action_space.n == 2


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
def test_the_log_of_a_resumed_run_has_each_step_once(algorithm, shown, tmp_path):
    recipe = recipe_of(algorithm, "checkpoints.every=800")
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "run", **stop_at(900, signal.SIGTERM))
    train(recipe, tmp_path / "run", resume=True)
    resumed, whole = scalars(open_run(tmp_path / "run")), scalars(shown(algorithm)[0])
    for tag in ("rollout/ep_rew_mean", "train/loss", "eval/mean_reward", "certificate/gamma"):
        assert resumed[tag] == whole[tag], tag


@pytest.mark.parametrize("algorithm", some_soak(RECIPES, "tensor_ppo"))
@pytest.mark.parametrize("terminal", [True, False])
def test_one_display_shows_return_speed_and_time_left(algorithm, terminal, shown):
    run, text = shown(algorithm, terminal)
    last = [line for line in text.splitlines() if "steps/s" in line][-1]
    assert "left" in last
    assert ("100%" if terminal else "1600/1600 steps") in last
    tags = scalars(run)
    assert f"{tags['rollout/ep_rew_mean'][-1][1]:.1f}" in last
    assert f"{max(value for _, value in tags['eval/mean_reward']):.1f}" in last
