"""What `cuda_without_one` cannot show: the real device, its own random numbers and waits, and CUDA graphs."""

import copy

import pytest
import torch
from card_cases import CELLS, build_cell, ppo

from robust_policies.envs import TorchVectorEnv
from robust_policies.networks import ACTIVATIONS, make_cell

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def waiting_raises():
    """Let PyTorch raise where the host waits for the device."""

    class Mode:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return Mode()


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_gives_what_it_gives_on_the_cpu(name, waiting_raises):
    cell = build_cell(name).double()
    inputs, starts = torch.randn(6, 5, 3, dtype=torch.float64), torch.rand(6, 5) < 0.3
    there = copy.deepcopy(cell).cuda()
    outputs, final = cell(inputs, None, starts)
    (outputs.square().sum() + final.sum()).backward()
    given = inputs.cuda(), starts.cuda()
    there(given[0], None, given[1])
    if name in ("lstm", "gru", "convex"):
        found, last = there(given[0], None, given[1])
    else:
        with waiting_raises:
            found, last = there(given[0], None, given[1])
    (found.square().sum() + last.sum()).backward()
    torch.testing.assert_close(found.cpu(), outputs, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(cell.parameters(), there.parameters(), strict=True):
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["r2dn", "ren"])
def test_the_kernel_over_time_gives_the_steps_values_and_gradients(name, activation):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    cell = make_cell(name, 3, 2, **CELLS[name], activation=activation)
    inputs, starts = torch.randn(40, 70, 3), torch.rand(40, 70) < 0.1
    there = copy.deepcopy(cell).cuda()
    expected = cell.double()
    outputs, final = expected(inputs.double(), None, starts)
    (outputs.square().mean() + final.mean()).backward()
    found, last = there(inputs.cuda(), None, starts.cuda())
    assert any("Kernel" in type(node).__name__ for node in graph_of(found))
    (found.square().mean() + last.mean()).backward()
    torch.testing.assert_close(found.cpu().double(), outputs, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(expected.parameters(), there.parameters(), strict=True):
        if mine.grad is not None and mine.numel():
            torch.testing.assert_close(theirs.grad.cpu().double(), mine.grad, rtol=1e-3, atol=1e-4)


def graph_of(tensor):
    """Return the nodes of a tensor's graph."""
    seen, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return seen


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("task", ["pendulum", "cartpole", "quadrotor", "linear"])
def test_steps_wait_for_nothing(task, compiled, waiting_raises):
    env = TorchVectorEnv(task, 64, device="cuda", max_episode_steps=5, compile=compiled)
    env.reset(seed=0)
    env.trusts_actions = True
    action = torch.as_tensor(env.action_space.sample(), device="cuda")
    for _ in range(8):
        env.step(action)
    with waiting_raises:
        for _ in range(12):
            observation = env.step(action)[0]
    assert bool(torch.isfinite(observation).all())


@pytest.mark.parametrize(("task", "cell"), [("pendulum", "r2dn"), ("cartpole", "ren"), ("pendulum", "lstm")])
def test_ppo_trains(task, cell):
    model = ppo("cuda", task, cell)
    assert model.why_numpy is None
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(360)
    after = list(model.policy.parameters())
    assert all(bool(torch.isfinite(one).all()) for one in after)
    assert any(bool((one != other).any()) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("task", "cell", "critic"), [("pendulum", "r2dn", "mlp"), ("cartpole", "ren", "own")])
def test_a_recorded_training_gives_the_numbers_of_one_call_by_call(task, cell, critic):
    def learnt(graphs):
        # Float32 holds the rate, which a recorded step reads from a tensor.
        return ppo("cuda", task, cell, critic, graphs=graphs, learning_rate=2.0**-10).learn(120 * 6)

    expected, found = learnt("never"), learnt("auto")
    assert found.why_no_graph == {"rollout": None, "update": None}
    assert found._recorded_rollout.graph.replays == found._recorded_update.graph.replays == 4
    weights = expected.policy.state_dict()
    for name, value in found.policy.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.rollout_buffer.observations, expected.rollout_buffer.observations)


def test_a_recorded_rollout_and_update_wait_for_nothing_and_allocate_nothing(waiting_raises):
    model = ppo("cuda", graphs="auto").learn(120 * 4)
    rollout, update = model._recorded_rollout, model._recorded_update
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    with waiting_raises:
        for _ in range(3):
            rollout.graph()
            update.graph()
    assert rollout.graph.replays == update.graph.replays == 5
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
