"""The pictures: every kind of plant, what they show, both modes, plants of a user's own."""

import copy

import numpy as np
import pytest
import torch

from robust_policies.envs.drawing import canvas
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.envs.rendering import DRAWINGS, Renderer
from robust_policies.envs.task import load_plant

LEVEL = [1.0, 0.0, 0.0, 0.0]
# A usual state and another one, of each task that is drawn here and not by MuJoCo.
STATES = {
    "pendulum": ([0.3, 0.0], [0.5, 0.0]),
    "cartpole": ([0.1, 0.0, 0.1, 0.0], [0.3, 0.0, 0.1, 0.0]),
    "cartpole_swingup": ([0.1, 0.0, 3.0, 0.0], [0.1, 0.0, 2.5, 0.0]),
    "qube_servo": ([0.2, 0.1, 0.0, 0.0], [0.2, 0.3, 0.0, 0.0]),
    "maglev": ([0.05, 0.0, 6.0], [0.06, 0.0, 6.0]),
    "quadrotor_planar": ([0.5, 1.0, 0.1, 0.0, 0.0, 0.0, 0.0], [0.5, 1.1, 0.1, 0.0, 0.0, 0.0, 0.0]),
    "quadrotor": ([0.0, 0.0, 1.0, *LEVEL, *[0.0] * 7], [0.1, 0.0, 1.0, *LEVEL, *[0.0] * 7]),
    "linear": ([0.3, 0.1], [0.5, 0.1]),
    "youla_example": ([0.1, 0.2, 0.3, 0.4, 5.0, 3.0], [0.1, 0.2, 0.3, 0.4, 6.0, 3.0]),
}
WITH_HISTORY = {"quadrotor_planar", "quadrotor", "linear", "youla_example"}


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def draw(plant, state, action=None, renderer=None, steps=0, params=None):
    state = np.array(state, dtype=float)
    observation = plant.observe(torch.from_numpy(state), plant.prepare(plant.nominal())).numpy()
    push = np.zeros(plant.action_size) if action is None else np.array(action, dtype=float)
    return (renderer or Renderer(plant, "rgb_array", 50)).draw(state, push, observation, steps, params)


def middle_of(picture, colour, tolerance=12):
    """Return the mean (x, y) of the points of a colour, and how many there are."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) <= tolerance).all(-1))
    return columns.mean(), rows.mean(), len(rows)


@pytest.mark.parametrize("task", STATES)
def test_shows_state_and_action(task):
    plant = load_plant(task)
    first, second = STATES[task]
    picture = draw(plant, first)
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
    assert np.array_equal(picture, draw(plant, first))
    assert not np.array_equal(picture, draw(plant, second))
    pushed = np.where(np.isfinite(plant.action_high), plant.action_high, 1.0)
    assert not np.array_equal(picture, draw(plant, first, action=pushed))


@pytest.mark.parametrize("task", STATES)
def test_draws_any_state(task):
    plant = load_plant(task)
    rng = np.random.default_rng(0)
    renderer = Renderer(plant, "rgb_array", 50)
    for step, size in enumerate([0.0, 1e-9, 1.0, 1.0, 10.0, 1e4, 1e9, 1e300, np.inf, np.nan]):
        numbers = [rng.standard_normal(n) * size for n in (plant.state_size, plant.action_size)]
        picture = renderer.draw(*numbers, rng.standard_normal(plant.observation_size) * size, step)
        assert picture.shape == (480, 480, 3), size


@pytest.mark.parametrize("task", STATES)
def test_history_is_drawn_only_in_traces_and_ends_with_the_episode(task):
    plant = load_plant(task)
    first, second = STATES[task]
    renderer = Renderer(plant, "rgb_array", 50)
    for step in range(3):
        draw(plant, first, renderer=renderer, steps=step)
    later = draw(plant, second, renderer=renderer, steps=3)
    assert np.array_equal(later, draw(plant, second)) == (task not in WITH_HISTORY)
    again = draw(plant, second, renderer=renderer, steps=3)
    assert np.array_equal(later, again), "drawing twice in one step must not lengthen a trace"
    assert np.array_equal(draw(plant, first, renderer=renderer, steps=1), draw(plant, first))


def test_pictures_of_mirrored_states_are_mirrored():
    for task in ("pendulum", "cartpole_swingup"):
        plant = load_plant(task)
        state = np.array(STATES[task][0])
        left, right = draw(plant, state, action=[1.0]), draw(plant, -state, action=[-1.0])
        # The labels on the track are the same on both sides; compare what is above it.
        difference = np.abs(left[:280].astype(int) - right[:280, ::-1]).mean()
        assert difference < 0.2, task


def test_what_is_to_the_right_is_drawn_to_the_right():
    cart = load_plant("cartpole_swingup")
    assert middle_of(draw(cart, [1.0, 0.0, 0.0, 0.0]), canvas.BODY)[0] > 300
    leaning = draw(cart, [0.0, 0.0, 0.5, 0.0], action=[5.0])
    assert middle_of(leaning, canvas.BODY)[0] > 250 and middle_of(leaning, canvas.PUSH)[0] > 250
    assert middle_of(draw(load_plant("pendulum"), [-0.5, 0.0]), canvas.BODY)[0] > 250
    qube = load_plant("qube_servo")
    right, left = (middle_of(draw(qube, [0.0, swing, 0.0, 0.0]), canvas.BODY)[0] for swing in (0.5, -0.5))
    assert right > left + 30
    # Turned a quarter counterclockwise seen from above, the arm points to the right of the view.
    assert middle_of(draw(qube, [1.57, 0.0, 0.0, 0.0]), canvas.BODY)[0] > 300


def test_what_is_higher_is_drawn_higher():
    maglev = load_plant("maglev")
    near, far = (middle_of(draw(maglev, [z, 0.0, 6.0]), canvas.BODY)[1] for z in (0.02, 0.08))
    assert near < far - 50
    planar = load_plant("quadrotor_planar")
    low, high = (middle_of(draw(planar, [0.0, z, 0.0, *[0.0] * 4]), canvas.BODY)[1] for z in (0.8, 1.2))
    assert high < low - 50
    full = load_plant("quadrotor")
    low, high = (middle_of(draw(full, [0.0, 0.0, z, *LEVEL, *[0.0] * 7]), canvas.BODY)[1] for z in (0.5, 1.2))
    assert high < low - 50


def test_thrust_points_where_it_pushes():
    planar = load_plant("quadrotor_planar")
    picture = draw(planar, [0.0, 1.0, 0.6, *[0.0] * 4], action=planar.action_high)
    body, thrust = middle_of(picture, canvas.BODY), middle_of(picture, canvas.PUSH)
    assert thrust[0] > body[0] + 15 and thrust[1] < body[1] - 15
    at_plus_x = middle_of(draw(planar, [0.0, 1.0, 0.0, *[0.0] * 4], action=[0.3, 0.0]), canvas.PUSH)
    assert at_plus_x[0] > 250
    full = load_plant("quadrotor")
    # Turned by half a turn about x, it pushes down.
    over, upright = (
        middle_of(draw(full, [0.0, 0.0, 1.0, *turn, *[0.0] * 7], action=full.action_high), canvas.PUSH)[1]
        for turn in ([0.0, 1.0, 0.0, 0.0], LEVEL)
    )
    assert over > upright + 50


@pytest.mark.parametrize("task", ["pendulum", "cartpole_swingup"])
def test_a_longer_pole_is_drawn_longer(task):
    plant = load_plant(task)
    state = STATES[task][0]
    nominal = plant.nominal()
    longer = {**nominal, "length": 1.25 * nominal["length"]}
    sizes = [middle_of(draw(plant, state, params=params), canvas.BODY)[2] for params in (nominal, longer)]
    assert np.array_equal(draw(plant, state), draw(plant, state, params=nominal))
    assert 1.1 < sizes[1] / sizes[0] < 1.4


@pytest.mark.parametrize("task", STATES)
def test_the_window_shows_the_same_picture(task):
    import pygame

    plant = load_plant(task)
    renderer = Renderer(plant, "human", 1000)
    assert draw(plant, STATES[task][0], renderer=renderer) is None
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert np.array_equal(shown, draw(plant, STATES[task][0]))
    copy.deepcopy(renderer).close()
    assert pygame.display.get_init()
    renderer.close()
    renderer.close()
    assert not pygame.display.get_init()


def test_the_window_shows_mujocos_picture():
    import pygame

    try:
        from mujoco.egl import GLContext

        GLContext(64, 64).free()
    except Exception as error:  # Any of a dozen kinds, by platform and driver.
        pytest.skip(f"MuJoCo cannot draw here: {error!r}")
    plant = load_plant("inverted_pendulum")
    state, push, observation = np.array([0.1, 0.2, 0.0, 0.0]), np.zeros(1), np.zeros(plant.observation_size)
    picture, window = Renderer(plant, "rgb_array", 50), Renderer(plant, "human", 1000)
    pixels = picture.draw(state, push, observation, 0)
    assert pixels.shape == (480, 480, 3) and pixels.dtype == np.uint8
    assert window.draw(state, push, observation, 0) is None
    assert np.array_equal(pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1), pixels)
    assert not np.array_equal(picture.draw(-state, push, observation, 0), pixels)
    window.close()
    picture.close()


class OwnPicture(LinearPlant):
    kind = "own"

    def draw(self, pygame, state, action, observation):
        surface = pygame.Surface((60, 40))
        surface.fill((10, 20, int(state[0])))
        return surface


class NoPicture(LinearPlant):
    kind = "something else"


def test_a_plant_that_draws_itself_is_asked_to():
    plant = OwnPicture(load_plant("linear").task)
    picture = draw(plant, [7.0, 0.0])
    assert picture.shape == (40, 60, 3) and (picture == (10, 20, 7)).all()
    renderer = Renderer(plant, "human", 1000)
    assert draw(plant, [7.0, 0.0], renderer=renderer) is None
    renderer.close()


def test_a_plant_without_picture_gets_traces():
    linear = load_plant("linear")
    assert np.array_equal(draw(NoPicture(linear.task), [0.3, 0.1]), draw(linear, [0.3, 0.1]))


def test_traces_keep_apart_many_long_names():
    plant = NoPicture(load_plant("linear").task)
    renderer = Renderer(plant, "rgb_array", 50)
    plant.state_names = tuple(f"a state whose name is long, number {k} [rad/s]" for k in range(5))
    plant.output_names = tuple(f"y{k}" for k in range(9))
    for step in range(30):
        picture = renderer.draw(np.full(5, 0.1 * step), np.zeros(1), np.full(9, 0.1 * step), step)
    # Each name is a row of its own in its line's colour, below the panel of the outputs and above that of the states.
    rows = [middle_of(picture[160:265], colour)[1] for colour in canvas.LINES[:4]]
    assert (np.diff(rows) > 8).all()


def test_every_drawing_is_a_module_with_a_draw_function():
    import importlib

    for name in DRAWINGS:
        assert callable(importlib.import_module(f"robust_policies.envs.drawing.{name}").draw)


def test_the_camera_looks_at_its_target():
    camera = canvas.Camera(eye=(3.0, 0.0, 4.0), target=(0.0, 0.0, 0.0), zoom=500.0)
    assert camera((0.0, 0.0, 0.0)) == pytest.approx((240.0, 240.0))
    assert camera.depth((0.0, 0.0, 0.0)) == pytest.approx(5.0) and camera.scale((0.0, 0.0, 0.0)) == pytest.approx(100.0)
    assert camera((0.0, 0.5, 0.0)) == pytest.approx((290.0, 240.0))
    x, y = camera((0.0, 0.0, 0.5))
    assert x == pytest.approx(240.0) and y < 240.0
    assert np.isfinite(camera((30.0, 0.0, 40.0))).all()


def test_colours_blend_and_values_stay_bounded():
    assert canvas.blend((0, 100, 200), 1.0) == (0, 100, 200) and canvas.blend((0, 100, 200), -3.0) == canvas.PAPER
    assert canvas.blend((0, 100, 200), 0.5, (100, 100, 100)) == (50, 100, 150)
    values = [canvas.bounded(value, -1.0, 3.0) for value in (2.0, 9.0, np.inf, -np.inf, np.nan)]
    assert values == [2.0, 3.0, 3.0, -1.0, 1.0]
    shares = canvas.share(np.array([3.0, 4.0, 5.0]), np.array([-6.0, 0.0, -np.inf]), np.array([6.0, 8.0, np.inf]))
    assert shares == [0.5, 0.5, 0.0]
