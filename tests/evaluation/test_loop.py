"""loop.json, its pictures and its part of the report, from a folder and against the formulas."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from in_process import answer, one_line

from robust_policies.control import linearize_plant, lqg
from robust_policies.envs import load_plant
from robust_policies.errors import CorruptFileError, InvalidValueError
from robust_policies.evaluation import loop_run
from robust_policies.evaluation.limits import Limits, judge, requirement
from robust_policies.evaluation.loop import _moved
from robust_policies.evaluation.report.load import load_runs
from robust_policies.evaluation.report.loop import loop_part, notes
from robust_policies.evaluation.report.loop_charts import loop_charts, margin_rows, read_loop
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import DeployedPolicy, YoulaOptions, YoulaPolicy, policy_loop, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.storage import load_policy

TASK = "robust_policies/MassSpringDamper-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder of an untrained Youla policy and its loop.json, without pictures."""
    torch.manual_seed(0)
    model = linearize_plant(load_plant("mass_spring_damper"))
    actor = Actor(ScaledCell(R2DN(1, 2, 1, 2, (2,), guarantee=Lipschitz(0.5)), Scaling(1)), MeanHead(1, 1, True))
    torch.nn.init.ones_(actor.head.linear.weight)
    box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    inner = DeployedPolicy(actor, box, spaces.Box(-0.5, 0.5, (1,), np.float64))
    limits = spaces.Box(-2.0, 2.0, (1,), np.float64)
    options = YoulaOptions(limit=0.5)
    policy = YoulaPolicy(lqg.design(model), model, inner, observation_space=box, action_space=limits, options=options)
    folder = tmp_path_factory.mktemp("runs") / "youla"
    save_policy(policy, folder, task=TASK)
    loop_run(folder)
    return folder


@pytest.fixture(scope="module")
def content(folder):
    return read_loop(folder / "loop.json")


def test_the_file_holds_what_is_measured_and_proven(folder, content):
    found = policy_loop(load_policy(folder))
    measured = found.loop.measured(0)
    [one] = content["policy"]["inputs"]
    assert one["gain_high"] == measured.gain_high and one["phase"] == measured.phase and one["delay"] == measured.delay
    assert content["policy"]["disk"]["alpha"] == found.loop.disk().alpha
    proven = content["proven"]
    assert proven["policy"]["disk"]["alpha"] <= proven["its linear part"]["disk"]["alpha"] <= found.loop.disk().alpha
    frequency = content["frequency"]
    angles = np.array(frequency["rad_per_s"]) * content["time_step"]
    assert 0 < angles[0] and angles[-1] < np.pi
    pairs = np.array(frequency["policy"][0])
    np.testing.assert_allclose(
        pairs[:, 0] + 1j * pairs[:, 1], found.loop.opened(0).response(angles)[:, 0, 0], rtol=1e-9
    )
    # 1 + L is 1 / S, where there is one input.
    np.testing.assert_allclose(np.abs(1 + pairs[:, 0] + 1j * pairs[:, 1]) * frequency["policy S"], 1.0, rtol=1e-9)


def test_responses_settle_where_the_static_gains_say(content):
    load, sensor = content["responses"]
    found = {kind: entry["LQG"]["output"][-1] for kind, entry in (("load", load), ("sensor", sensor))}
    model = linearize_plant(load_plant("mass_spring_damper"))
    plant = float((model.C @ np.linalg.solve(np.eye(2) - model.A, model.B))[0, 0])
    pairs = np.array(content["frequency"]["LQG"][0])
    open_loop = pairs[0, 0]
    # At the lowest frequency L is nearly its value at rest; six time constants leave a quarter of a percent.
    assert found["load"] == pytest.approx(load["size"] * plant / (1 + open_loop), rel=0.05)
    assert found["sensor"] == pytest.approx(-sensor["size"] * open_loop / (1 + open_loop), rel=0.05)
    near = np.abs(np.array(load["policy"]["output"]) - np.array(load["its linear part"]["output"])).max()
    assert near < 0.5 * np.abs(load["policy"]["output"]).max()


@pytest.mark.parametrize(("plant", "first"), [("mass_spring_damper", 0), ("pendulum", 1), ("cartpole_swingup", 0)])
def test_responses_are_of_an_output_that_the_input_moves(plant, first):
    assert _moved(linearize_plant(load_plant(plant))) == first


def test_pictures_of_responses_name_their_output(content):
    other = json.loads(json.dumps(content))
    for entry in other["responses"]:
        assert entry["output"] == content["outputs"][0]
        entry["output"] = "another"
    labels = [panel.y_label for panel in loop_charts(other, "loop", "mine")[0].panels]
    assert labels == ["another", content["inputs"][0]] * 2


def test_every_picture_has_its_lines(content):
    charts = {chart.key: chart for chart in loop_charts(content, "loop", "mine")}
    assert list(charts) == ["loop-responses", "loop-bode", "loop-plane", "loop-sensitivity"]
    assert [len(chart.panels) for chart in charts.values()] == [4, 2, 2, 2]
    nyquist, poles = charts["loop-plane"].panels
    assert nyquist.square and poles.square >= 1.0
    shown = {series.name: len(series.x) for series in poles.series}
    assert shown["policy"] == len(content["policy"]["poles"]) and shown["plant"] == 2
    _, phase = charts["loop-bode"].panels
    own = next(series for series in phase.series if series.name == "policy")
    pairs = np.array(content["frequency"]["policy"][0])
    turned = np.degrees(np.angle(pairs[:, 0] + 1j * pairs[:, 1]))
    assert np.abs((own.y - turned + 180.0) % 360.0 - 180.0).max() < 1e-9
    assert np.abs(np.diff(own.y)).max() < 180.0
    size = np.hypot(*pairs.T)
    last = np.flatnonzero(size >= min(1.0, size.max()))[-1]
    assert -360.0 < own.y[last] <= 0.0


def test_an_unstable_loop_has_no_margins_and_says_so(content):
    broken = json.loads(json.dumps(content))
    broken["policy"] |= {"stable": False, "inputs": None, "disk": None, "delay": None}
    broken["proven"]["policy"] = {"disk": None, "delay": None}
    assert [one for whose, _, one in margin_rows(broken) if whose == "its linear part (measured)"] == [None, None]
    assert any("unstable" in note for note in notes(broken))


def test_the_report_has_a_part_and_check_reads_it(folder, content):
    [run] = load_runs([folder], pictures=False)
    page = loop_part(run)
    assert "the policy itself (proven)" in page and "no margins" not in page
    texts = ["phase_margin > 0", "gain_margin > 1", "delay_margin > 0", "disk_margin > 0", "sensitivity_peak < 1e3"]
    proven = ["proven_gain_margin > 1", "proven_phase_margin > 0", "proven_disk_margin > 0", "proven_delay_margin >= 0"]
    outcomes = judge(run, Limits(tuple(map(requirement, texts + proven))))
    assert all(one.met for one in outcomes)
    assert outcomes[0].value == content["policy"]["inputs"][0]["phase"]
    assert outcomes[5].value == content["proven"]["policy"]["disk"]["gain_high"]


def test_a_file_that_is_garbled_or_of_another_policy_is_said(folder, tmp_path, content):
    path = tmp_path / "loop.json"
    for change in ({"frequency": {}}, {"policy": []}, {"responses": [{"said": 1}]}, {"proven": None}, {"inputs": 3}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(CorruptFileError, match="robust-policies loop"):
            read_loop(path)
    own = folder / "loop.json"
    honest = own.read_text()
    own.write_text(json.dumps({**content, "policy_sha256": "0" * 64}))
    try:
        [run] = load_runs([folder], pictures=False)
        assert any("loop.json: it is of another policy" in one for one in run.agreement.differences)
        assert not judge(run, Limits((requirement("phase_margin > 0"),)))[0].met
    finally:
        own.write_text(honest)


def test_the_command_writes_pictures_and_a_table(folder, tmp_path):
    done = answer("loop", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the policy itself (proven)" in done.stdout and "its linear part (measured)" in done.stdout
    written = {path.name for path in (tmp_path / "out" / "loop").iterdir()}
    keys = ("responses", "bode", "plane", "sensitivity")
    assert written == {f"loop-{key}.{kind}" for key in keys for kind in ("png", "pdf", "svg")}
    assert (tmp_path / "out" / "loop.json").read_text() == (folder / "loop.json").read_text()


def test_a_task_without_a_linear_model_is_one_line(tmp_path):
    torch.manual_seed(0)
    actor = Actor(ScaledCell(R2DN(3, 2, 1, 2, (2,), guarantee=Lipschitz(1.0)), Scaling(3)), MeanHead(1, 1, False))
    high = np.array([1.0, 1.0, 8.0], np.float32)
    save_policy(
        DeployedPolicy(actor, spaces.Box(-high, high), spaces.Box(-2.0, 2.0, (1,))),
        tmp_path / "gym",
        task="Pendulum-v1",
    )
    assert "no linear model" in one_line(answer("loop", tmp_path / "gym"))
    assert not (tmp_path / "gym" / "loop.json").exists()
    recipe = "schema: 1\ntask: {id: robust_policies/Pendulum-v0, perturbations: [ObservationDelay: 1]}\n"
    (tmp_path / "gym" / "recipe.yaml").write_text(recipe + "algorithm: {total_steps: 1000}\n")
    with pytest.raises(InvalidValueError, match="wrappers"):
        loop_run(tmp_path / "gym")
    assert "does not exist" in one_line(answer("loop", tmp_path / "nowhere"))
