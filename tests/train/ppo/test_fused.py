"""Minibatches differentiated without a graph: loss, gradients and updates are those of PyTorch's operations."""

import copy

import pytest
import torch
from test_tensor_ppo import make_env, make_model, scattered

from robust_policies.networks import compiled, gated, perceptron
from robust_policies.train.ppo import fused, update
from robust_policies.train.ppo.losses import Terms

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let the kernels run however few samples there are."""
    monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    monkeypatch.setattr(perceptron, "_ENOUGH", 1)
    monkeypatch.setattr(gated, "_ENOUGH", 1)


def filled(cell, critic="mlp", task="pendulum", **options):
    """Return a model with a rollout in its buffer in which episodes begin, and the weights have moved since."""
    model = make_model(make_env(task), cell, critic, batch_size=60, ent_coef=0.01, **options)
    _, callback = model._setup_learn(1, None)
    scattered(model.env)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert model.rollout_buffer.starts[1:].any()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def gradients(model, differentiate, terms, at_once=None):
    torch.manual_seed(3)
    pieces = next(model.rollout_buffer.minibatches(model.minibatches, True, at_once))
    model.policy.zero_grad()
    parts = differentiate(pieces, terms)
    return parts, {name: copy.copy(one.grad) for name, one in model.policy.named_parameters()}


@pytest.mark.parametrize("cell", ["r2dn", "ren", "mlp", "lstm", "gru"])
@pytest.mark.parametrize("critic", ["mlp", "shared"])
@pytest.mark.parametrize("clip_values", [None, 0.05])
def test_loss_and_gradient_are_the_graphs(cell, critic, clip_values):
    options = {"action_scale": [1.5], "action_offset": [0.2]} if critic == "mlp" else {}
    model = filled(cell, critic, policy_kwargs=options)
    quick = fused.fused(model._tensors, model.rollout_buffer, 3)
    assert quick is not None
    terms = Terms(0.1, clip_values, 0.5, 0.01)
    expected, wanted = gradients(model, model._update.differentiate, terms)
    for at_once in (None, 45):
        parts, found = gradients(model, quick.differentiate, terms, at_once)
        for one, other in zip(parts, expected, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=1e-5, atol=1e-6)
        for name, one in wanted.items():
            other = found[name]
            assert (one is None) == (other is None), name
            if one is not None:
                assert float((one - other).abs().max()) <= 2e-5 * max(1.0, float(one.abs().max())), name


@pytest.mark.parametrize("cell", ["r2dn", "mlp", "gru"])
def test_an_update_is_the_one_of_the_graph(cell, monkeypatch):
    ways = []
    for quick in (fused.fused, lambda *_: None):
        monkeypatch.setattr(update, "fused", quick)
        model = filled(cell)
        torch.manual_seed(5)
        model.train()
        ways.append(model.policy.state_dict())
    for name, value in ways[0].items():
        torch.testing.assert_close(value, ways[1][name], rtol=0, atol=1e-5)


def test_frozen_parameters_stay():
    model = filled("r2dn")
    model.policy.log_std.requires_grad_(False)
    body = model.policy.lstm_actor.cell.requires_grad_(False)
    quick = fused.fused(model._tensors, model.rollout_buffer, 3)
    _, found = gradients(
        model, (quick or model).differentiate if quick else model._update.differentiate, Terms(0.1, None, 0.5, 0.0)
    )
    assert found["log_std"] is None and found["value_net.weight"] is not None
    assert all(parameter.grad is None for parameter in body.parameters())


@pytest.mark.parametrize(
    ("cell", "critic", "task"),
    [
        ("lbdn", "mlp", "pendulum"),
        ("r2dn", "own", "pendulum"),
        ("r2dn", "mlp", "cartpole"),
    ],
)
def test_everything_else_is_left_to_the_graph(cell, critic, task):
    model = filled(cell, critic, task)
    assert fused.fused(model._tensors, model.rollout_buffer, 3) is None


def test_actions_that_are_no_vectors_are_left_to_the_graph():
    model = filled("r2dn")
    assert fused.fused(model._tensors, model.rollout_buffer, 3) is not None
    model.rollout_buffer.actions = model.rollout_buffer.actions.unsqueeze(-1)
    assert fused.fused(model._tensors, model.rollout_buffer, 3) is None


def test_without_numba_the_graph_is_taken(monkeypatch):
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    model = filled("r2dn")
    assert fused.fused(model._tensors, model.rollout_buffer, 3) is None
    model.train()
