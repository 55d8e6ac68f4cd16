"""Learned contracting observers: what is proven of their errors, what is not, and what they are used for."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.control.linearize import linearize_plant
from robust_policies.control.lqg import design
from robust_policies.control.observers import boundedness, invariant_ellipsoid
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NotCertifiableError,
    ShapeError,
)
from robust_policies.identification import (
    IdentifiedModel,
    LearnedObserver,
    ObserverTraining,
    Samples,
    Signals,
    fit_observer,
    interval_residual,
    load_observer,
    measurement_gain,
    observer_bound,
    plant_samples,
    proven_contraction,
    statistical_residual,
)
from robust_policies.networks import R2DN, make_cell
from robust_policies.policies import (
    ObserverVectorWrapper,
    ObserverWrapper,
    YoulaPolicy,
    YoulaVectorWrapper,
    YoulaWrapper,
)

TASK, ID = "pendulum_no_velocity", "robust_policies/PendulumNoVelocity-v0"
REGION, RATE = (0.3, 1.0), 0.8
SMALL = {"features": 6, "hidden_sizes": (8,)}


@pytest.fixture(scope="module")
def observer():
    """Return an observer of the pendulum near the upright, whose angle's cosine and sine are measured."""
    samples = plant_samples(TASK, REGION, 1024)
    training = ObserverTraining(epochs=60, batch=128, learning_rate=5e-3)
    return fit_observer(samples, "r2dn", RATE, SMALL, training, start=(0.0, 0.0))


@pytest.fixture(scope="module")
def residual(observer):
    return interval_residual(observer, REGION, tolerance=0.3, boxes=20_000)


class EndedError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("order", ["random", "consecutive"])
@pytest.mark.parametrize("decay", ["cosine", "plateau"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_fit_goes_on_from_its_checkpoint_as_if_it_had_not_ended(tmp_path, order, decay, precision):
    samples, kept = plant_samples(TASK, REGION, 512), tmp_path / "kept.safetensors"
    how = ObserverTraining(epochs=6, batch=100, order=order, decay=decay, precision=precision)
    epochs, losses = [], []

    def stop(epoch, loss, model):
        if epoch == 4:
            raise EndedError
        epochs.append(epoch)

    whole = fit_observer(samples, "r2dn", RATE, SMALL, how, each=lambda epoch, loss, model: losses.append(loss))
    with pytest.raises(EndedError):
        fit_observer(samples, "r2dn", RATE, SMALL, how, each=stop, checkpoint=kept)
    assert epochs == [1, 2, 3]
    later = []
    again = fit_observer(
        samples, "r2dn", RATE, SMALL, how, each=lambda epoch, loss, model: later.append((epoch, loss)), checkpoint=kept
    )
    assert later == list(enumerate(losses, 1))[3:]
    one, other = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    # A finished one is not made again.
    fit_observer(samples, "r2dn", RATE, SMALL, how, each=stop, checkpoint=kept)
    assert epochs == [1, 2, 3]


def test_a_checkpoint_of_another_training_is_refused_and_a_plateau_goes_further(tmp_path):
    samples, kept = plant_samples(TASK, REGION, 256), tmp_path / "kept.safetensors"
    short, long = (ObserverTraining(epochs=n, batch=64, decay="plateau", order="consecutive") for n in (2, 4))
    fit_observer(samples, "r2dn", RATE, SMALL, short, checkpoint=kept)
    further = fit_observer(samples, "r2dn", RATE, SMALL, long, checkpoint=kept)
    whole = fit_observer(samples, "r2dn", RATE, SMALL, long)
    found = [one.model.state_dict() for one in (further, whole)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    with pytest.raises(InvalidValueError, match="another training"):
        fit_observer(samples, "r2dn", RATE, SMALL, ObserverTraining(epochs=4, batch=32), checkpoint=kept)
    with pytest.raises(CorruptFileError, match="no checkpoint"):
        fit_observer(samples, "r2dn", RATE, {**SMALL, "features": 5}, long, checkpoint=kept)
    kept.write_bytes(b"none")
    with pytest.raises(CorruptFileError, match="no checkpoint"):
        fit_observer(samples, "r2dn", RATE, SMALL, long, checkpoint=kept)


def runs(plant, count, steps, seed=0, torque=2.0, keep=REGION):
    """Return states (steps + 1, count, n), outputs and inputs of the plant, put back where it leaves `keep`."""
    rng, params = np.random.default_rng(seed), plant.prepare(plant.nominal())
    box = torch.tensor(keep, dtype=torch.float64)
    x = torch.as_tensor(rng.uniform(-1, 1, (count, 2))) * box
    states, outputs, inputs = [x], [], []
    for _ in range(steps):
        u = -10.0 * x[:, :1] - 2.0 * x[:, 1:] + torque * torch.as_tensor(rng.uniform(-1, 1, (count, 1)))
        u = u.clamp(-2.0, 2.0)
        outputs.append(plant.observe(x, params)), inputs.append(u)
        x = torch.minimum(torch.maximum(plant.advance(x, u, params), -box), box)
        states.append(x)
    return [torch.stack(part) for part in (states, outputs, inputs)]


def sizes(P, error):
    return torch.einsum("...i,ij,...j->...", error, torch.as_tensor(P), error).sqrt()


def test_the_inequality_holds_at_every_step_with_the_residual_of_the_spot(observer):
    found, scale = proven_contraction(observer), torch.tensor(observer.model.signals.output_scale)
    assert found.rate < 1
    states, outputs, inputs = runs(observer.plant, 250, 400, torque=3.0)
    xh = states[0] + 0.3 * torch.randn(250, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    closest = np.inf
    for t in range(400):
        r = observer.advance(states[t], outputs[t], inputs[t]) - states[t + 1]
        before = (xh - states[t]) / scale
        xh = observer.advance(xh, outputs[t], inputs[t])
        slack = (
            found.rate * sizes(found.P, before)
            + sizes(found.P, r / scale)
            - sizes(found.P, (xh - states[t + 1]) / scale)
        )
        closest = min(closest, float(slack.min()))
    assert closest > -1e-9


def test_the_interval_bound_is_above_everything_seen_and_not_far_above(observer, residual):
    assert residual.kind == "interval" and "proven by interval arithmetic" in residual.claim
    P, scale = proven_contraction(observer).P, torch.tensor(observer.model.signals.output_scale)
    drawn = plant_samples(TASK, REGION, 20_000, seed=7)
    x, y, u, following = (torch.as_tensor(getattr(drawn, k)) for k in ("states", "outputs", "inputs", "following"))
    worst = float(sizes(P, (observer.advance(x, y, u) - following) / scale).max())
    assert worst <= residual.value * (1 + 1e-9) and residual.value < 2.0 * worst
    assert residual.seen <= residual.value
    coarse = interval_residual(observer, REGION, boxes=1)
    assert coarse.value > residual.value


def test_the_error_bound_holds_along_runs_in_the_region(observer, residual):
    bound = observer_bound(observer, residual, (0.1, 0.4), noise=0.01)
    assert bound.kind == "proven" and bound.rate < 1 and "whatever the inputs" in bound.claim
    states, outputs, inputs = runs(observer.plant, 100, 60, seed=3)
    generator = torch.Generator().manual_seed(1)
    xh = states[0] + torch.tensor([0.1, 0.4]) * (2 * torch.rand(100, 2, generator=generator, dtype=torch.float64) - 1)
    params, plant, largest = observer.plant.prepare(observer.plant.nominal()), observer.plant, 0.0
    for t in range(60):
        # `runs` puts states back, which is a disturbance: the plant's own step is taken here.
        error = states[t] - xh
        assert float(sizes(bound.P, error).max()) <= bound.at(t)
        assert bool((error.abs() <= torch.as_tensor(bound.each(t))).all())
        noise = torch.randn(100, 2, generator=generator, dtype=torch.float64)
        y = outputs[t] + 0.01 * noise / noise.norm(dim=-1, keepdim=True)
        moved = plant.advance(states[t], inputs[t], params) - states[t + 1]
        xh = observer.advance(xh, y, inputs[t]) - moved
        largest = max(largest, float(sizes(bound.P, error).max()) / bound.at(t))
    assert largest > 0.02


def test_an_incorrect_observer_is_off_by_the_residual_over_what_is_forgotten():
    signals = Signals(("y",), ("x",), 1.0, (0.0,), (1.0,), (0.0,), (1.0,))
    torch.manual_seed(0)
    cell = R2DN(1, 1, 1, 2, (4,), rate=0.9, init="long_memory", output="state").double()
    with torch.no_grad():
        cell.B1.zero_()
    observer = LearnedObserver(IdentifiedModel(cell, signals), 1, (0.0,))
    found = proven_contraction(observer)
    x = xh = torch.zeros(1, 1, dtype=torch.float64)
    empty = torch.zeros(1, 0, dtype=torch.float64)
    for t in range(300):
        y = torch.tensor([[np.sin(t)]])
        x, xh = observer.advance(x, y, empty) - 0.01, observer.advance(xh, y, empty)
    ratio = float((xh - x).abs()) / (0.01 / (1.0 - found.rate))
    assert 0.5 < ratio <= 1.0 + 1e-9


def test_what_runs_show_is_called_statistical(observer):
    states, outputs, inputs = runs(observer.plant, 200, 20, torque=0.0, keep=(9.0, 9.0))
    found = statistical_residual(observer, inputs, outputs, states, 0.99)
    assert found.kind == "statistical" and found.claim.startswith("statistical, not proven")
    assert found.share == pytest.approx(1 - 0.01 ** (1 / 200)) and found.share <= np.log(100) / 200
    bound = observer_bound(observer, found, (0.1, 0.4))
    assert bound.kind == "statistical" and "not proven" in bound.claim and "of another policy" in bound.claim
    one = statistical_residual(observer, inputs[:, :1], outputs[:, :1], states[:, :1])
    assert one.value <= found.value and one.share == pytest.approx(0.99)
    with pytest.raises(InvalidValueError, match="confidence"):
        statistical_residual(observer, inputs, outputs, states, 1.0)
    with pytest.raises(ShapeError, match="states"):
        statistical_residual(observer, inputs, outputs, states[1:])


def test_the_gain_from_noise_is_above_every_difference(observer):
    P, scale = proven_contraction(observer).P, torch.tensor(observer.model.signals.output_scale)
    gain, generator = measurement_gain(observer), torch.Generator().manual_seed(0)
    x, y, u, v = (torch.randn(5000, k, generator=generator, dtype=torch.float64) for k in (2, 2, 1, 2))
    moved = (observer.advance(x, y + 0.1 * v, u) - observer.advance(x, y, u)) / scale
    found = float((sizes(P, moved) / (0.1 * v).norm(dim=-1)).max())
    assert 0.05 * gain < found <= gain


def test_what_has_no_bound_says_so(observer, residual):
    samples = plant_samples(TASK, REGION, 64)
    short = ObserverTraining(epochs=1, batch=64)
    slow = fit_observer(samples, "r2dn", 1.0, SMALL, short)
    with pytest.raises(InvalidValueError, match="below 1"):
        observer_bound(slow, residual, (0.1, 0.4))
    ren = fit_observer(samples, "ren", RATE, {"features": 6}, short)
    assert observer_bound(ren, residual, (0.1, 0.4)).rate < 1
    with pytest.raises(NotCertifiableError, match="r2dn"):
        observer_bound(ren, residual, (0.1, 0.4), noise=0.1)
    assert interval_residual(ren, REGION, boxes=200).value > 0
    with pytest.raises(ShapeError, match="2 half widths"):
        observer_bound(observer, residual, (0.1,))
    with pytest.raises(InvalidValueError, match="interval arithmetic"):
        interval_residual(observer, (0.3, 20.0))
    with pytest.raises(InvalidValueError, match="not its state"):
        LearnedObserver(IdentifiedModel(make_cell("gru", 3, 2, state_size=2), observer.model.signals), 2, (0.0, 0.0))


def test_it_is_saved_and_read_back(observer, tmp_path):
    observer.save(tmp_path / "one")
    again = load_observer(tmp_path / "one")
    x, y, u = (torch.randn(4, k, dtype=torch.float64) for k in (2, 2, 1))
    assert torch.equal(again.advance(x, y, u), observer.advance(x, y, u))
    assert (again.initial, again.task, again.output_size) == (observer.initial, TASK, 2)
    observer.model.save(tmp_path / "plain")
    with pytest.raises(CorruptFileError, match="no observer"):
        load_observer(tmp_path / "plain")
    with pytest.raises(MissingFileError):
        load_observer(tmp_path / "absent")


def test_samples_that_do_not_fit_are_refused():
    one = np.zeros((3, 1))
    with pytest.raises(ShapeError, match="following"):
        Samples(one, one, one, np.zeros((2, 1)), ("x",), ("y",), ("u",), 0.1)
    with pytest.raises(ValueError, match="finite"):
        Samples(one, one + np.nan, one, one, ("x",), ("y",), ("u",), 0.1)
    with pytest.raises(InvalidValueError, match="cosine, plateau"):
        ObserverTraining(decay="linear")
    with pytest.raises(ShapeError, match="2 half widths"):
        plant_samples(TASK, (1.0,), 4)


def test_the_estimate_is_a_feature_of_one_environment_and_of_many(observer, residual):
    bound = observer_bound(observer, residual, (0.3, 1.0))
    options = {"include": ("observation", "estimate", "bound"), "bound": bound}
    one = ObserverWrapper(gymnasium.make(ID), observer, **options)
    many = ObserverVectorWrapper(gymnasium.make_vec(ID, num_envs=2), observer, **options)
    start = np.array([[0.1, 0.1], [-0.1, 0.3]])
    first, _ = one.reset(seed=3, options={"state": start[1]})
    many.reset(seed=3, options={"state": start})
    xh, y = torch.zeros(1, 2, dtype=torch.float64), torch.as_tensor(first[:2])[None].double()
    for t in range(6):
        action = np.array([-0.5 * np.sin(t)], dtype=np.float32)
        xh = observer.advance(xh, y, torch.as_tensor(action)[None])
        seen, _, _, _, info = one.step(action)
        several, *_ = many.step(torch.as_tensor(np.stack((action, action))))
        y = torch.as_tensor(seen[:2])[None].double()
        assert np.allclose(info["estimate"], xh[0].numpy(), atol=1e-12)
        assert np.allclose(seen, several[1].numpy(), atol=1e-5)
        assert np.allclose(seen[4:], bound.each(t + 1), rtol=1e-5)


def test_its_innovation_feeds_a_youla_policy(observer):
    one = YoulaWrapper(gymnasium.make(ID), observer=observer)
    many = YoulaVectorWrapper(gymnasium.make_vec(ID, num_envs=2, dtype="float64"), observer=observer)
    start = np.array([[0.02, 0.0], [-0.05, 0.1]])
    one.reset(seed=0, options={"state": start[1]})
    many.reset(seed=0, options={"state": start})
    plant = observer.plant
    params = plant.prepare(plant.nominal())
    xh = torch.zeros(1, 2, dtype=torch.float64)
    y = plant.observe(torch.as_tensor(start[1:]), params)
    for t in range(20):
        youla = np.array([0.3 * np.sin(t)], dtype=np.float32)
        _, _, _, _, info = one.step(youla)
        _, _, _, _, several = many.step(torch.as_tensor(np.stack((youla, youla))).double())
        # The observer is told what the plant received, after the actuator.
        xh = observer.advance(xh, y, several["applied_input"][1:])
        y = plant.observe(many.unwrapped.state[1:], params)
        expected = y - plant.observe(xh, params)
        assert torch.allclose(several["innovation"][1:], expected, rtol=0, atol=1e-9)
        assert np.allclose(info["innovation"], several["innovation"][1].numpy(), atol=1e-4)
    with pytest.raises(InvalidValueError, match="inside the wrapper"):
        YoulaPolicy.of(one, None)
    with pytest.raises(InvalidValueError, match="start, innovation and follow"):
        YoulaWrapper(gymnasium.make(ID), observer=3)


def test_every_youla_input_leaves_the_loop_in_the_region_if_the_numbers_say_so(observer):
    plant, model = observer.plant, linearize_plant(observer.plant)
    chosen = design(model, estimator="predictor")
    held = invariant_ellipsoid(plant, model, chosen, (0.1, 0.2))
    x = torch.zeros(200, 2, dtype=torch.float64)
    params, rng = plant.prepare(plant.nominal()), np.random.default_rng(0)
    K, largest = torch.as_tensor(chosen.K), 0.0
    for _ in range(300):
        d = torch.as_tensor(rng.choice([-1.0, 1.0], (200, 1))) * held.admissible
        x = plant.advance(x, torch.as_tensor(model.u0) - (x - torch.as_tensor(model.x0)) @ K.T + d, params)
        largest = max(largest, float(sizes(held.P, x - torch.as_tensor(model.x0)).max()))
    assert 0.05 < largest <= 1.0
    claim = boundedness(0.1 * held.admissible, 1.0, 0.5 * held.admissible, held.admissible, held.claim)
    assert claim.proven and "incremental stability is not claimed" in claim.claim
    with pytest.raises(ShapeError):
        invariant_ellipsoid(plant, model, chosen, (0.1,))
    with pytest.raises(InvalidValueError, match="give"):
        invariant_ellipsoid(plant, model, chosen, (3.0, 7.0))
