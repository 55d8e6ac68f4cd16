"""What is played side by side is what would be played one by one."""

import numpy as np
import pytest
import torch
from tiny import OURS, THEIRS, tiny_policy, tiny_suite

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation.attacks.sequence_pgd import SequencePGD
from robust_policies.evaluation.bench import Bench
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.evaluation.faults import measure_fault

SHORT = {"max_steps": 30}


def bench(task, **changed):
    return Bench(tiny_policy(), task, {}, [], tiny_suite(**changed))


@pytest.mark.parametrize("task", [OURS, THEIRS])
def test_noises_side_by_side_are_those_alone(task):
    together, alone = bench(task, seeds=[5], noise=["uniform", "l2"]), bench(task, seeds=[5], noise=[])
    for name in ("uniform", "l2", "gaussian"):
        (one, first), (other, at) = together.noise(name), alone.noise(name)
        assert (first, at) == ({"uniform": 0, "l2": 3, "gaussian": 0}[name], 0)
        for index in range(3):
            found, wanted = one[5].returns[first + index], other[5].returns[index]
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert set(together.noises) == {"uniform", "l2", "gaussian"}


@pytest.mark.parametrize("kind", ["mad_pgd", "sequence_pgd", "random", "uniform"])
def test_tuning_episodes_beside_the_reported_ones_change_neither(kind):
    place, policy = bench(THEIRS, seeds=[0, 1]), tiny_policy()
    options = {} if kind in ("random", "uniform") else {"options": {"steps": 1}}
    reported, tuned = place.play(kind, [0.1, 0.4], tuning=True, **options, **SHORT)
    for seed, part, count in ((0, reported, 3), (1, reported, 3), (1000, tuned, 2)):
        wanted = run_episodes(policy, THEIRS, kind, [0.1, 0.4], count, seed, **options, **SHORT)
        np.testing.assert_allclose(part[seed].returns, wanted.returns, rtol=1e-4)


def test_unperturbed_episodes_are_played_once(monkeypatch):
    policy, known, asked = tiny_policy(), {}, []
    recordings = []

    class Watched(SequencePGD):
        def begin(self, scene):
            super().begin(scene)
            recordings.append(self.recording)

    monkeypatch.setattr("robust_policies.evaluation.attacks.registry._CLASSES", {"sequence_pgd": Watched})
    monkeypatch.setattr("robust_policies.evaluation.rollout._remember", lambda *given: asked.append(given[1].shape))
    play = {"options": {"steps": 1}, "known": known, **SHORT}
    run_episodes(policy, OURS, "sequence_pgd", [0.1, 0.3], 4, 0, **play)
    assert asked == [(30, 4, 3)] and not known
    monkeypatch.undo()
    monkeypatch.setattr("robust_policies.evaluation.attacks.registry._CLASSES", {"sequence_pgd": Watched})
    first = run_episodes(policy, OURS, "uniform", [0.0], 4, 0, known=known, **SHORT)
    (stored,) = known.values()
    assert torch.equal(stored[1], torch.as_tensor(first.returns[0]))
    # The same start states in another batch.
    run_episodes(policy, OURS, "sequence_pgd", [0.1], 2, 0, **play)
    torch.testing.assert_close(recordings[0][:, :2], recordings[1], rtol=1e-5, atol=1e-5)
    assert len(known) == 1
    # Other wrappers, other episodes: those are played.
    run_episodes(policy, OURS, "sequence_pgd", [0.1], 2, 0, perturbations=["ObservationDelay"], **play)
    run_episodes(policy, OURS, "sequence_pgd", [0.1], 2, 7, **play)
    assert len(known) == 3
    assert not torch.allclose(recordings[2], recordings[1]) and not torch.allclose(recordings[3], recordings[1])


def test_kinds_and_draws_that_do_not_fit_are_refused():
    policy = tiny_policy()
    with pytest.raises(InvalidValueError, match="1 kinds of noise were given for 2 sizes"):
        run_episodes(policy, OURS, ["l2"], [0.0, 0.1], 2, 0)
    with pytest.raises(UnknownNameError, match="mad_pgd"):
        run_episodes(policy, OURS, ["mad_pgd"], [0.1], 2, 0)
    with pytest.raises(InvalidValueError, match="of 3 episodes in all"):
        run_episodes(policy, OURS, "l2", [0.1], 3, 0, draws=[(0, 1), (5, 1)])


def test_what_is_too_wide_is_played_in_parts(monkeypatch):
    widths = []
    plain = run_episodes

    def watched(policy, task, kind, sizes, episodes, *given, **options):
        widths.append(len(sizes) * episodes)
        return plain(policy, task, kind, sizes, episodes, *given, **options)

    monkeypatch.setattr("robust_policies.evaluation.bench.run_episodes", watched)
    fault = {"perturbation": "ObservationDelay", "parameter": "steps", "values": [0, 1]}
    for most, wanted in ((1024, [18, 12]), (5, [9, 9, 3, 3, 3, 3])):
        monkeypatch.setattr("robust_policies.evaluation.bench._MOST_OBJECTS", most)
        widths.clear()
        place = bench(THEIRS, noise=["l2"], faults=[fault])
        place.noise("l2")
        measure_fault(place, place.suite.faults[0], "fault")
        assert widths == wanted
