"""A user's own MJCF and task.yaml, outside the repository, without Python."""

import numpy as np
import pytest
import torch
import yaml

from robust_policies.envs import TorchVectorEnv, load_plant
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UnknownNameError, UserError

MODEL = """
<mujoco model="crane">
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="3 3 0.1"/>
    <body name="trolley" pos="0 0 1.2">
      <joint name="rail" type="slide" axis="1 0 0" range="-1 1" limited="true" damping="0.5"/>
      <geom type="box" size="0.1 0.1 0.05" mass="2"/>
      <body name="load" pos="0 0 -0.6">
        <joint name="swing" type="hinge" axis="0 1 0" pos="0 0 0.6" damping="0.01"/>
        <geom type="sphere" size="0.08" mass="1"/>
        <site name="hook"/>
      </body>
    </body>
    <body name="mark" pos="0.5 0 0.6"><site name="goal"/></body>
  </worldbody>
  <actuator><motor name="drive" joint="rail" gear="20" ctrllimited="true" ctrlrange="-1 1"/></actuator>
  <sensor><actuatorfrc name="drive force" actuator="drive"/><velocimeter name="speed" site="hook"/></sensor>
  <keyframe><key name="left" qpos="-0.5 0.2"/></keyframe>
</mujoco>
"""
TASK = {
    "schema": 1,
    "plant": "mujoco",
    "description": "Bring a hanging load to a mark without swinging.",
    "model": "crane.xml",
    "frame_skip": 4,
    "time_step": 0.02,
    "max_episode_steps": 100,
    "observation": [
        {"positions": ["rail"]},
        {"sin": ["swing"]},
        {"cos": ["swing"]},
        {"velocities": "all", "clip": 5.0},
        {"sensor": "drive force"},
        {"difference": [{"site": "hook"}, {"site": "goal"}], "axes": ["x", "z"]},
    ],
    "reward": [
        {"term": "alive", "weight": 0.5},
        {"term": "square", "of": {"difference": [{"site": "hook"}, {"site": "goal"}]}, "weight": -2.0},
        {"term": "square", "of": {"positions": "all"}, "target": [0.5, 0.0], "weight": -0.1},
        {"term": "value", "of": {"cos": ["swing"]}, "weight": 0.3},
        {"term": "control", "weight": -0.01},
    ],
    "termination": [{"of": {"positions": ["swing"]}, "above": -1.0, "below": 1.0}],
    "reset": {
        "keyframe": "left",
        "pose": {"swing": 0.1},
        "positions": {"spread": 0.05},
        "velocities": {"distribution": "normal", "spread": 0.1},
        "still": ["rail"],
    },
    "disturbance": {"body": "load"},
    "randomize": {"body_mass": [0.5, 2.0]},
}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the task, changed, with its model, and returns the folder."""

    def write(xml=MODEL, **changes):
        (tmp_path / "crane.xml").write_text(xml)
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK | changes))
        return tmp_path

    return write


def test_a_folder_with_a_model_and_a_task_file_is_a_task(write):
    env = TorchVectorEnv(write(), num_envs=6, seed=3)
    observation, _ = env.reset()
    assert observation.shape == (6, 8)
    assert env.single_action_space.shape == (1,)
    for _ in range(150):
        observation, reward, _, _, _ = env.step(2.0 * torch.rand(6, 1) - 1.0)
        assert torch.isfinite(observation).all()
        assert torch.isfinite(reward).all()
    env.close()


def test_observation_reward_end_and_start_are_what_the_task_file_says(write):
    plant = load_plant(write())
    params = plant.prepare(plant.nominal())
    uniform = torch.rand((50, plant.reset_size), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = plant.initial(uniform, params)
    assert (state[:, 0] + 0.5).abs().max() <= 0.05
    assert (state[:, 1] - 0.1).abs().max() <= 0.05
    assert state[:, 2].abs().max() == 0.0
    assert 0.05 < state[:, 3].std() < 0.2
    action = torch.linspace(-1, 1, 50, dtype=torch.float64).unsqueeze(-1)
    following = plant.advance(state, action, params)
    x, swing, speed, rate = following[:, :4].unbind(-1)
    hook = torch.stack((x - 0.6 * swing.sin(), 1.2 - 0.6 * swing.cos()), dim=-1)
    gap = hook - torch.tensor([0.5, 0.6], dtype=torch.float64)
    expected = torch.stack((x, swing.sin(), swing.cos(), speed, rate, action[:, 0]), dim=-1)
    observation = plant.observe(following, params)
    torch.testing.assert_close(observation, torch.cat((expected, gap), dim=-1), rtol=0, atol=1e-9)
    reward = 0.5 - 2 * gap.square().sum(-1) - 0.1 * ((x - 0.5) ** 2 + swing**2) + 0.3 * swing.cos()
    reward = reward - 0.01 * action[:, 0] ** 2
    torch.testing.assert_close(plant.reward(state, action, following, params), reward, rtol=0, atol=1e-9)
    tipped = following.clone()
    tipped[:10, 1] = 1.0
    assert plant.terminated(tipped, params).tolist() == [True] * 10 + [False] * 40
    fallen = plant.reward(state, action, tipped, params)
    upright = plant.reward(state, action, following, params)
    assert (upright[10:] == fallen[10:]).all()
    np.testing.assert_array_equal(plant.observation_high, [np.inf, 1, 1, 5, 5, np.inf, np.inf, np.inf])


def test_masses_in_the_model_file_are_the_parameters(write):
    plant = load_plant(write())
    assert plant.nominal()["body_mass"].tolist() == [0.0, 2.0, 1.0, 0.0]
    assert plant.parameter_units["body_mass"].startswith("kg")
    heavy = load_plant(write(MODEL.replace('mass="1"', 'mass="3"')))
    assert heavy.nominal()["body_mass"].tolist() == [0.0, 2.0, 3.0, 0.0]


def test_without_a_body_the_first_that_moves_is_pushed(write):
    plant = load_plant(write(disturbance={}))
    assert plant.disturbance_names[0] == "force x on trolley [N]"


def test_a_free_body_starts_with_a_unit_quaternion_and_falls(write):
    model = MODEL.replace("<body name=\"mark\" pos=\"0.5 0 0.6\">", '<body name="mark" pos="0.5 0 2">'
                          '<freejoint name="free"/><geom size="0.05" mass="0.1"/>')  # fmt: skip
    reset = {"positions": {"spread": 0.2}}
    plant = load_plant(write(model.replace('qpos="-0.5 0.2"', 'qpos="-0.5 0.2 0.5 0 2 1 0 0 0"'), reset=reset,
                             reward=TASK["reward"][:1]))  # fmt: skip
    params = plant.prepare(plant.nominal())
    state = plant.initial(torch.rand((4, plant.reset_size), dtype=torch.float64), params)
    torch.testing.assert_close(state[:, 5:9].norm(dim=-1), torch.ones(4, dtype=torch.float64))
    following = plant.advance(state, torch.zeros((4, 1), dtype=torch.float64), params)
    assert (following[:, 4] < state[:, 4]).all()


BAD_MODELS = {
    "unknown element": (MODEL.replace("<site name", "<sight name"), CorruptFileError, "not a model that MuJoCo reads"),
    "no compiling": (MODEL.replace('joint="rail" gear', 'joint="rial" gear'), CorruptFileError, "rial"),
    "not XML": ("masses: 3", CorruptFileError, "crane.xml"),
    "no actuator": (MODEL.replace(MODEL[MODEL.index("  <actuator>") : MODEL.index("  <keyframe>")], ""),
                    UserError, "drive force|actuator"),
    "no range": (MODEL.replace('ctrllimited="true" ctrlrange="-1 1"', ""), InvalidValueError, "drive.*ctrlrange"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_bad_model_is_answered_with_what_is_wrong(write, case):
    model, error, message = BAD_MODELS[case]
    with pytest.raises(error, match=message):
        load_plant(write(model))


BAD_TASKS = {
    "missing model": ({"model": "crain.xml"}, MissingFileError, "crain.xml.*there is crane.xml"),
    "missing gymnasium model": ({"model": "gymnasium:hoper.xml"}, MissingFileError, "hopper.xml"),
    "time step": ({"time_step": 0.05}, InvalidValueError, r"time_step is 0.05 s; expected .* 4 \* 0.005 = 0.02 s"),
    "joint": ({"observation": [{"positions": ["rial"]}]}, UnknownNameError, "joint 'rial'. Did you mean 'rail'"),
    "site": ({"observation": [{"point": {"site": "hok"}}]}, UnknownNameError, "site 'hok'. Did you mean 'hook'"),
    "point": ({"observation": [{"point": {"sight": "hook"}}]}, UnknownNameError, "Did you mean 'site'"),
    "sensor": ({"observation": [{"sensor": "spede"}]}, UnknownNameError, "Did you mean 'speed'"),
    "limit": ({"observation": [{"limit_force": "rial"}]}, UnknownNameError, "Did you mean 'rail'"),
    "signal": ({"observation": [{"position": "all"}]}, UnknownNameError, "item 1.*Did you mean 'positions'"),
    "two signals": ({"observation": [{"positions": "all", "velocities": "all"}]}, InvalidValueError, "expected one of"),
    "no signal": ({"observation": []}, InvalidValueError, "observation is empty"),
    "no mapping": ({"observation": ["positions"]}, InvalidValueError, "observation.0 is .positions."),
    "term": ({"reward": [{"term": "alife", "weight": 1}]}, InvalidValueError, "reward, item 1: term is 'alife'.*alive"),
    "no weight": ({"reward": [{"term": "alive"}]}, InvalidValueError, "weight is missing"),
    "term without signal": ({"reward": [{"term": "norm", "weight": 1}]}, InvalidValueError, "of is missing"),
    "target": ({"reward": [{"term": "square", "of": {"positions": "all"}, "target": [1.0], "weight": 1}]},
               UserError, "target has 1 numbers; expected 2"),
    "range": ({"termination": [{"of": {"positions": "all"}}]}, InvalidValueError, "neither above nor below"),
    "keyframe": ({"reset": {"keyframe": "lift"}}, UnknownNameError, "Did you mean 'left'"),
    "reset": ({"reset": {"position": {"spread": 1}}}, UnknownNameError, "position"),
    "disc": ({"reset": {"discs": [{"joints": ["rail", "swing"], "radios": 1}]}}, UserError, "item 1.*radius"),
    "body": ({"disturbance": {"body": "lode"}}, UnknownNameError, "Did you mean 'load'"),
    "randomize": ({"randomize": {"mass": [1, 2]}}, UnknownNameError, "body_mass"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TASKS)
def test_a_bad_task_file_is_answered_with_what_is_known(write, case):
    changes, error, message = BAD_TASKS[case]
    with pytest.raises(error, match=message) as raised:
        load_plant(write(**changes))
    assert "task.yaml" in str(raised.value)


def test_options_of_the_task_file_replace_those_of_the_model(write):
    plant = load_plant(write(options={"cone": "elliptic", "integrator": "Euler", "iterations": 7}))
    option = plant.model.opt
    assert (option.cone, option.integrator, option.iterations) == (1, 0, 7)


def test_stages_need_joints_whose_positions_follow_their_velocities(write):
    model = MODEL.replace("<body name=\"mark\" pos=\"0.5 0 0.6\">", '<body name="mark" pos="0.5 0 2">'
                          '<freejoint/><geom size="0.05"/>').replace("implicitfast", "RK4")  # fmt: skip
    model = model[: model.index("  <keyframe>")] + "</mujoco>"
    with pytest.raises(InvalidValueError, match="hinges and slides only"):
        load_plant(write(model, readings="last_stage", reset={}))


STIFF = """<mujoco><option timestep="0.02" gravity="0 0 0" integrator="{integrator}">{flag}</option><worldbody>
<body><joint name="s" type="slide" axis="1 0 0" stiffness="20000"/><geom size="0.1" mass="1"/></body></worldbody>
<actuator><motor joint="s" ctrlrange="-5 5"/></actuator>
<sensor><accelerometer name="felt" site="at"/></sensor></mujoco>""".replace(
    '<geom size="0.1" mass="1"/>', '<geom size="0.1" mass="1"/><site name="at"/>'
)
SLIDE = {
    "model": "slide.xml", "frame_skip": 1, "time_step": 0.02,
    "observation": [{"positions": "all"}, {"velocities": "all"}],
    "reward": [{"term": "alive", "weight": 1.0}], "termination": [], "reset": {}, "disturbance": {}, "randomize": {},
}  # fmt: skip


def slide(folder, integrator="Euler", flag="", **changes):
    """Return a task's folder: a spring that is too stiff for the time step of its simulation."""
    (folder / "slide.xml").write_text(STIFF.format(integrator=integrator, flag=flag))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK | SLIDE | changes))
    return folder


@pytest.mark.parametrize("readings", [[], [{"sensor": "felt"}]], ids=["state", "sensor"])
@pytest.mark.parametrize("flag", ["", '<flag autoreset="disable"/>'], ids=["autoreset", "no autoreset"])
@pytest.mark.parametrize("frame_skip", [1, 2])
def test_an_unstable_simulation_ends_by_mujocos_own_limit(tmp_path, monkeypatch, flag, frame_skip, readings):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there.
    task = slide(tmp_path, flag=flag, frame_skip=frame_skip, time_step=0.02 * frame_skip,
                 observation=SLIDE["observation"] + readings)  # fmt: skip
    env = TorchVectorEnv(task, num_envs=3, autoreset_mode="Disabled", seed=0)
    before, _ = env.reset()
    step, terminated, observation = 0, torch.zeros(3, dtype=torch.bool), before
    while step < 15 and not terminated.any():
        step, before = step + 1, observation
        observation, reward, terminated, _, _ = env.step(torch.ones(3, 1))
        assert torch.isfinite(observation).all() and torch.isfinite(reward).all()
    # The acceleration of the 14th time step is the first beyond 1e10; an accelerometer would show it after the 13th.
    last = 13 if readings else 14
    assert terminated.all() and step == -(-last // frame_skip)
    # What the policy sees last is the state before, and all of it is within the limit.
    assert torch.equal(observation, before) and (observation.abs() < 1e10).all()
    env.close()


def test_a_state_beyond_the_limit_is_a_failure_whether_mujoco_looked_or_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Far out the spring is off: the state alone is what is wrong, after the last look in a step.
    plant = load_plant(slide(tmp_path, observation=SLIDE["observation"] + [{"sensor": "felt"}]))
    params = plant.prepare(plant.nominal() | {"jnt_stiffness": torch.zeros(1, dtype=torch.float64)})
    state = torch.zeros((3, plant.state_size), dtype=torch.float64)
    state[0, 0], state[0, 1] = 9.9e9, 9.9e9
    state[1, 0], state[1, 1] = 9.9e9, 1e9
    following = plant.advance(state, torch.zeros((3, 1)), params)
    assert plant.terminated(following, params).tolist() == [True, False, False]
    # A start that is unstable has no readings; the episode is over before it begins.
    start = plant.settle(torch.tensor([[1e11] + [0.0] * (plant.state_size - 1)], dtype=torch.float64), params)
    assert plant.terminated(start, params).all() and torch.isfinite(start).all()


def test_a_keyframe_also_places_mocap_bodies(write):
    model = MODEL.replace('<body name="mark" pos="0.5 0 0.6">', '<body name="mark" mocap="true" pos="0.5 0 0.6">')
    model = model.replace('qpos="-0.5 0.2"/>', 'qpos="-0.5 0.2" mpos="-0.7 0 0.4" mquat="0 0 0 1"/>')
    there = TASK["observation"] + [{"point": {"site": "goal"}}]
    plant = load_plant(write(model, observation=there))
    state = plant.initial(torch.zeros((2, plant.reset_size), dtype=torch.float64), plant.prepare(plant.nominal()))
    heavier = plant.prepare(plant.nominal() | {"body_mass": 2.0 * plant.nominal()["body_mass"]})
    for params in (plant.prepare(plant.nominal()), heavier):
        following = plant.advance(state, torch.zeros((2, 1)), params)
        torch.testing.assert_close(
            plant.observe(following, params)[:, -3:], torch.tensor([[-0.7, 0.0, 0.4]] * 2, dtype=torch.float64)
        )
    np.testing.assert_array_equal(plant.model.body("mark").quat, [0, 0, 0, 1])
    # Without the keyframe it stands where the model has it.
    plain = load_plant(write(model, observation=there, reset={}))
    assert plain.model.body("mark").pos.tolist() == [0.5, 0.0, 0.6]


def test_controls_are_named_by_their_actuators(write):
    pytest.importorskip("mujoco", minversion="4.0")
    several = '<pid name="servo" joint="swing" kp="1" kv="1" {ranges}/><motor name="last" joint="rail" ' \
              'ctrllimited="true" ctrlrange="-1 1"/></actuator>'  # fmt: skip
    unbounded = MODEL.replace("</actuator>", several.format(ranges='posrange="-1 1"'))
    with pytest.raises(InvalidValueError, match="control 'servo velocity' has no ctrlrange"):
        load_plant(write(unbounded))
    bounded = load_plant(write(MODEL.replace("</actuator>", several.format(ranges='posrange="-1 1" velrange="-2 2"'))))
    assert bounded.action_names == tuple(
        f"control of {name}" for name in ("drive", "servo position", "servo velocity", "last")
    )
    assert bounded.action_high.tolist() == [1.0, 1.0, 2.0, 1.0]


def test_the_room_for_contacts_is_named_as_what_it_is(write):
    with pytest.raises(UnknownNameError, match="pooled_contacts_per_world"):
        load_plant(write(warp={"contacts": 8}))
    assert load_plant(write(warp={"pooled_contacts_per_world": 8})).task.warp.pooled_contacts_per_world == 8
