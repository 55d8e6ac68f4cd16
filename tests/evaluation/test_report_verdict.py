"""The first sentences of a report, its notes, and what an attack did."""

import numpy as np
import pytest
from report_fixtures import PENDULUM, write_run

from robust_policies.evaluation.effect import effect
from robust_policies.evaluation.report.load import load_runs
from robust_policies.evaluation.report.methods import group_by_method
from robust_policies.evaluation.report.page import render
from robust_policies.evaluation.report.sections import asides, glance, notes
from robust_policies.evaluation.report.verdict import verdict


def rows(harm):
    """Return rows of an unperturbed policy and of one attack that takes `harm` of every episode's return."""
    returns = [-100.0, -110.0, -120.0, -130.0]
    labels = {"task": PENDULUM, "group": "attack", "perturbation": "mad_pgd", "norm": "per_step_l2", "seed": 0}
    return [
        {**labels, "size": size, "attack": "mad_pgd", "returns": [value - loss for value in returns]}
        for size, loss in ((0.0, 0.0), (0.3, harm))
    ]


def methods_with(folder, gamma=3.0, **changes):
    write_run(folder, "R2DN gamma 3", gamma, **{"worst": [], "trajectories": [], **changes})
    return group_by_method(load_runs([folder]))


@pytest.mark.parametrize("harm", [-5.0, 0.0, 0.004])
def test_a_strongest_attack_that_does_nothing_is_called_that(tmp_path, harm):
    methods = methods_with(tmp_path / "run", rows=rows(harm))
    assert "<b>does nothing</b>" in verdict(methods) and "does nothing" in glance(methods, PENDULUM)


def test_an_attack_that_does_something_is_told_in_numbers(tmp_path):
    methods = methods_with(tmp_path / "run", rows=rows(50.0))
    said = verdict(methods)
    assert "worst attack found (mad_pgd, size 0.3 observation units, l2 norm of each step)" in said
    assert "from -115 to <b>-165</b>" in said and "does nothing" not in said + glance(methods, PENDULUM)
    assert "<b>proven</b>" in said and "differ by at most 3 times" in said


def test_the_worst_of_faults_and_changed_plants_is_named(tmp_path):
    delay = {"task": PENDULUM, "group": "fault", "perturbation": "ObservationDelay", "norm": "", "size": 3.0, "seed": 0}
    harmed = [*rows(0.0), {**delay, "unit": "steps", "returns": [-900.0] * 4}]
    said = verdict(methods_with(tmp_path / "run", rows=harmed))
    assert "(ObservationDelay, size 3 steps) took it from -115 to <b>-900</b>" in said


def test_what_is_not_proven_is_not_called_proven(tmp_path):
    assert "<b>nothing is proven</b>" in verdict(methods_with(tmp_path / "run", None, rows=rows(1.0)))


def test_a_constant_action_is_called_constant(tmp_path):
    index = [{"task": PENDULUM, "perturbation": "none", "norm": "", "size": 0.0, "key": "t0"}]
    folder = tmp_path / "run"
    methods_with(folder, rows=rows(0.0), trajectories=index)
    for actions, constant in ((np.full((5, 2, 1), -2.0), True), (np.linspace(0, 1, 10).reshape(5, 2, 1), False)):
        np.savez(folder / "trajectories.npz", t0_actions=actions, t0_rewards=np.zeros((5, 2)))
        said = verdict(group_by_method(load_runs([folder])))
        assert ("Its action is constant (-2)" in said) == constant


def test_notes_on_secondary_tasks_are_at_the_foot(tmp_path):
    left = [{"task": task, "perturbation": "x", "reason": f"not in {task}"} for task in (PENDULUM, "Pendulum-v1")]
    methods = methods_with(tmp_path / "run", rows=rows(9.0), tasks=[PENDULUM, "Pendulum-v1"], skipped=left)
    runs = methods[0].runs
    assert f"not in {PENDULUM}" in notes(runs) and "not in Pendulum-v1" not in notes(runs)
    assert "not in Pendulum-v1" in asides(runs)
    names = ("certified", "gains", "training", f"task {PENDULUM}", f"trajectories {PENDULUM}")
    page = render(methods, {name: [] for name in names}, {})
    page = page[page.index("<body>") : page.index("<script")]
    order = ("id='verdict'", f"not in {PENDULUM}", ">At a glance</h2>", "<dt>CVaR 10%", ">What was checked</h2>")
    places = [page.index(words) for words in (*order, "not in Pendulum-v1")]
    assert places == sorted(places)


def test_an_effect_is_of_the_same_episodes():
    random = np.random.default_rng(0)
    before = random.normal(-1000, 300, (1, 40))
    found = effect(before, before - 5)
    assert not found.nothing and (found.low, found.high) == pytest.approx((5, 5))
    assert effect(before, before + random.normal(0, 50, (1, 40))).nothing and effect(before, before).nothing
