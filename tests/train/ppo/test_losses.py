"""PPO's loss in closed form against automatic differentiation of its definition, and pieces against the whole."""

import copy

import pytest
import torch
from test_tensor_ppo import CELLS, make_env, make_model
from torch.distributions import Normal
from torch.nn import functional

from robust_policies.train.ppo import losses, update
from robust_policies.train.ppo.buffer import Minibatch
from robust_policies.train.ppo.losses import GaussianLogProb, Terms, clipped_loss, gaussian_entropy, gaussian_loss


def minibatch():
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    nothing = torch.empty(0)
    values, log_probs, advantages, returns = grids
    return Minibatch(nothing, nothing, nothing, values, log_probs, advantages, returns, nothing, nothing)


@pytest.mark.parametrize("clip_values", [None, 0.3])
def test_the_loss_and_its_gradient_are_those_of_the_definition(clip_values):
    batch, generator = minibatch(), torch.Generator().manual_seed(1)
    values, log_probs = (
        (old + 0.4 * torch.randn(5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
        for old in (batch.values, batch.log_probs)
    )
    loss, parts = clipped_loss(values, log_probs, batch, 0.2, clip_values, 0.7)
    ratio = (log_probs - batch.log_probs).exp()
    policy_loss = -torch.min(batch.advantages * ratio, batch.advantages * ratio.clamp(0.8, 1.2)).mean()
    seen = values
    if clip_values is not None:
        seen = batch.values + (values - batch.values).clamp(-clip_values, clip_values)
    value_loss = functional.mse_loss(seen, batch.returns)
    expected = policy_loss + 0.7 * value_loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(parts.policy_loss, policy_loss.detach())
    torch.testing.assert_close(parts.value_loss, value_loss.detach())
    moved = (ratio - 1).detach()
    assert 0.0 < float(parts.fraction) == float((moved.abs() > 0.2).double().mean()) < 1.0
    torch.testing.assert_close(parts.divergence, (moved - moved.log1p()).mean())
    for one, other in zip(torch.autograd.grad(3.0 * loss, (values, log_probs)),
                          torch.autograd.grad(3.0 * expected, (values, log_probs)), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_gaussian_log_probabilities_are_pytorchs():
    generator = torch.Generator().manual_seed(0)
    means, actions = (torch.randn(5, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    means.requires_grad_()
    log_std = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    given = Normal(means, log_std.exp())
    found, expected = GaussianLogProb.apply(means, log_std, actions), given.log_prob(actions).sum(-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gaussian_entropy(log_std), given.entropy().sum(-1).mean())
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(found, (means, log_std), weights),
                          torch.autograd.grad(expected, (means, log_std), weights), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("clip_values", [None, 0.3])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_the_compiled_loss_is_the_one_of_operations(monkeypatch, clip_values, dtype, close):
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(2)
    batch = minibatch()._replace(actions=torch.randn(5, 4, 2, generator=generator, dtype=torch.float64))
    batch = Minibatch(*(one.to(dtype) for one in batch))
    values = batch.values + 0.4 * torch.randn(5, 4, generator=generator).to(dtype)
    means = batch.actions + 0.3 * torch.randn(5, 4, 2, generator=generator).to(dtype)
    log_std = torch.tensor([0.3, -0.5], dtype=dtype)
    batch = batch._replace(log_probs=GaussianLogProb.apply(means + 0.3, log_std, batch.actions))
    terms, found = Terms(0.2, clip_values, 0.7, 0.01), []
    assert losses._kernels(dtype) is not None
    for kernels in (losses._kernels, lambda dtype: None):
        monkeypatch.setattr(losses, "_kernels", kernels)
        given = [one.clone().requires_grad_() for one in (values, means, log_std)]
        loss, parts, entropy = gaussian_loss(*given, batch, terms)
        slopes = torch.autograd.grad(3.0 * loss, given)
        assert not any(one.requires_grad for one in (*parts, entropy))
        found.append((loss.detach(), *parts, entropy, *slopes))
    assert 0.0 < float(found[0][2]) < 1.0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_what_is_not_a_number_stays_so_in_the_compiled_loss():
    pytest.importorskip("numba")
    batch = minibatch()._replace(actions=torch.zeros(5, 4, 1, dtype=torch.float64))
    means = torch.zeros(5, 4, 1, dtype=torch.float64)
    means[2, 1] = torch.nan
    means.requires_grad_()
    loss, *_ = gaussian_loss(batch.values, means, torch.zeros(1, dtype=torch.float64), batch, Terms(0.2, 0.1, 0.5, 0.0))
    assert torch.isnan(loss)
    loss.backward()
    assert torch.isnan(means.grad[2, 1])


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize(("critic", "task"), [("own", "pendulum"), ("mlp", "cartpole")])
def test_an_update_in_pieces_is_the_one_of_whole_minibatches(monkeypatch, cell, critic, task):
    if critic == "own" and cell in ("mlp", "lbdn"):
        critic = "shared"
    whole = make_model(make_env(task), cell, critic, batch_size=60, ent_coef=0.01)
    _, callback = whole._setup_learn(1, None)
    assert whole.collect_rollouts(whole.env, callback, whole.rollout_buffer, whole.n_steps)
    pieces = make_model(make_env(task), cell, critic, batch_size=60, ent_coef=0.01)
    pieces.policy.load_state_dict(whole.policy.state_dict())
    pieces.set_logger(whole.logger)
    pieces.rollout_buffer = pieces._update.buffer = copy.deepcopy(whole.rollout_buffer)
    logged = []
    for model, at_once in ((whole, 2**14), (pieces, 45)):
        monkeypatch.setattr(update, "_CPU_ROWS_AT_ONCE", at_once)
        torch.manual_seed(5)
        model.train()
        logged.append({tag: value for tag, value in model.logger.name_to_value.items() if tag.startswith("train/")})
    assert logged[1].pop("train/n_updates") == logged[0].pop("train/n_updates")
    assert logged[1] == pytest.approx(logged[0], rel=1e-4, abs=1e-5)
    for name, value in pieces.policy.state_dict().items():
        torch.testing.assert_close(value, whole.policy.state_dict()[name], rtol=0, atol=1e-5)


def test_pieces_hold_every_environment_once_with_normalised_advantages():
    model = make_model(make_env(), batch_size=60)
    buffer = model.rollout_buffer
    buffer.values.copy_(torch.arange(6).expand(20, 6))
    buffer.advantages.copy_(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    seen = []
    for pieces in buffer.minibatches(model.minibatches, True, 45):
        assert len(pieces) == 2
        parts = list(pieces)
        assert sum(share for _, share in parts) == pytest.approx(1.0)
        advantages = torch.cat([batch.advantages for batch, _ in parts], 1)
        rows = torch.cat([batch.values[0] for batch, _ in parts]).long()
        chosen = buffer.advantages[:, rows]
        torch.testing.assert_close(advantages, (chosen - chosen.mean()) / (chosen.std() + 1e-8))
        seen += rows.tolist()
    assert sorted(seen) == list(range(6))
