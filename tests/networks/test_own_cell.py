"""A cell of another package: registered, trained by a recipe, saved, loaded, certified and evaluated."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from in_process import answer, one_line

from robust_policies.certificates import verify
from robust_policies.certificates.verify import running_neurons
from robust_policies.errors import InvalidValueError, NotCertifiableError, UnknownNameError
from robust_policies.evaluation.certify import certify_run, check_run
from robust_policies.networks import CELLS, Cell, NeuronCell, RENExplicit, known_cells, make_cell, register_cell
from robust_policies.policies import load_policy
from robust_policies.runtime import load

SUITE = Path(__file__).parents[1] / "tiny_suite.yaml"
MODULE = '''
from typing import NamedTuple
import torch
from robust_policies.certificates import Verification
from robust_policies.networks import Cell{more}
from torch import nn

class Arrays(NamedTuple):
    pole: torch.Tensor
    into: torch.Tensor
    out: torch.Tensor

{decorator}
class Filters(Cell):
    """First-order filters and a linear map of them."""

    name = "{name}"

    def __init__(self, input_size, state_size, output_size, slowest=0.95):
        super().__init__(input_size, state_size, output_size)
        self.slowest = slowest
        self.free = nn.Parameter(torch.linspace(-2.0, 2.0, state_size))
        self.into = nn.Parameter(torch.randn(state_size, input_size))
        self.out = nn.Parameter(torch.randn(output_size, state_size))

    def explicit(self):
        return Arrays(self.slowest * torch.sigmoid(self.free), self.into, self.out)

    def step(self, explicit, input, state):
        following = explicit.pole * state + (1 - explicit.pole) * (input @ explicit.into.mT)
        return following @ explicit.out.mT, following

    def run(self, explicit, inputs, state, starts):
        return self.unroll(explicit, inputs, state, starts)

    def options(self):
        sizes = {{key: getattr(self, key) for key in ("input_size", "state_size", "output_size")}}
        return {{**sizes, "slowest": self.slowest}}

    def zero_output_(self):
        nn.init.zeros_(self.out)
        return self
{proof}
'''
PROOF = """
    def prove(self, explicit):
        gamma = float(torch.linalg.matrix_norm(explicit.out.double(), 2))
        gamma *= float(torch.linalg.matrix_norm(explicit.into.double(), 2))
        return Verification("PASS", gamma * 1.000001, float(explicit.pole.max()), overshoot=1.0, method="filters")
"""
POINT = "[robust_policies.cells]\n{name} = {module}:Filters\n"
SHORT = ["task={id: robust_policies/MassSpringDamper-v0, num_envs: 2, kwargs: {max_episode_steps: 10}}",
         "algorithm.total_steps=40", "algorithm.horizon=10", "checkpoints.evaluate_episodes=2"]  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return what writes a package with a cell, registered by a call or an entry point, and names both."""
    made = []

    def write(name, by="call", proof=True):
        module = f"own_{name}_{tmp_path.name}"
        call = by == "call"
        text = MODULE.format(
            name=name, more=", register_cell" if call else "", decorator="@register_cell" if call else "",
            proof=PROOF if proof else "",
        )  # fmt: skip
        (tmp_path / f"{module}.py").write_text(text)
        if by == "entry point":
            folder = tmp_path / f"{module}-0.1.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1\n")
            (folder / "entry_points.txt").write_text(POINT.format(name=name, module=module))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        made.append((name, module))
        return module

    yield write
    for name, module in made:
        CELLS.pop(name, None)
        sys.modules.pop(module, None)


@pytest.mark.parametrize("by", ["call", "entry point"])
def test_a_recipe_trains_it_and_its_folder_is_certified_and_evaluated(by, package, tmp_path):
    module = package("filters", by)
    recipe = tmp_path / "mine.yaml"
    cell = f"{module}:filters" if by == "call" else "filters"
    recipe.write_text(f"""
task: {{id: robust_policies/MassSpringDamper-v0, num_envs: 2, kwargs: {{max_episode_steps: 10}}}}
policy: {{cell: "{cell}", state_size: 3, cell_options: {{slowest: 0.8}}}}
algorithm: {{name: apg, total_steps: 40, horizon: 10}}
checkpoints: {{evaluate_episodes: 2}}
""")
    folder = tmp_path / "run"
    done = answer("train", recipe, "-o", folder, "--no-evaluate")
    assert done.returncode == 0, done.stderr
    if by == "entry point":
        # As in a process that knows nothing of it yet.
        CELLS.pop("filters")
        assert "filters" in known_cells()
    policy = load_policy(folder)
    assert policy.cell.config()["type"] == "filters" and policy.cell.slowest == 0.8
    action, state = policy.predict(policy.observation_space.sample() * 0)
    assert action.shape == policy.action_space.shape and state.shape == (1, 3)
    certificate = certify_run(folder, steps=5)
    assert certificate.status == "PASS" and "the cell's own proof, not checked here: filters" in certificate.claim
    assert certificate.empirical_lower <= certificate.gamma_raw
    assert not check_run(folder)
    done = answer("evaluate", folder, "--episodes", "2", "--seeds", "0", "--suite", SUITE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "evaluation.json").is_file()
    with pytest.raises(UnknownNameError, match=r"register_step\('filters', make\) first"):
        load(folder)


def test_a_file_alone_imports_nothing(package, tmp_path):
    module = package("filters_of_a_file", "call")
    cell = make_cell(f"{module}:filters_of_a_file", 2, 1, state_size=3)
    config = cell.config()
    CELLS.pop("filters_of_a_file")
    sys.modules.pop(module)
    with pytest.raises(UnknownNameError, match="register_cell"):
        make_cell(config["type"], 2, 1, state_size=3)
    assert module not in sys.modules
    (tmp_path / f"{module}_broken.py").write_text("def cell(:\n")
    for name in ("no_such_module:filters", ":filters", ".filters:filters", f"{module}_broken:filters"):
        with pytest.raises(InvalidValueError, match="cannot be imported") as error:
            make_cell(name, 2, 1)
        assert "\n" not in str(error.value)


def test_without_a_certificate_it_is_said_so(package, tmp_path):
    module = package("bare", "call", proof=False)
    cell = make_cell(f"{module}:bare", 2, 1, state_size=3)
    with pytest.raises(NotCertifiableError, match="registered without a certificate"):
        verify(cell)
    assert running_neurons(cell) is None
    line = one_line(answer("train", "mass_spring_damper_r2dn_apg", "--set", *SHORT, "policy.features=null",
                           "policy.hidden_sizes=null", f"policy.cell={module}:bare", "policy.cell_options={slow: 1}",
                           "-o", tmp_path / "run"))  # fmt: skip
    assert "slow" in line and "slowest" in line


class Doubled(NeuronCell):
    """A cell whose arrays are judged: two states, one neuron."""

    name = "doubled"
    passes = 1

    def __init__(self, input_size, state_size, output_size):
        super().__init__(input_size, state_size, output_size)
        self.activation = make_cell("ren", 1, 1, state_size=1, features=1).activation
        self.C2 = torch.nn.Parameter(torch.ones(output_size, state_size))

    def explicit(self):
        nx, nu, ny, none = self.state_size, self.input_size, self.output_size, torch.zeros
        return RENExplicit(0.5 * torch.eye(nx), none(nx, 1), torch.ones(nx, nu), none(1, nx), self.C2, none(1, 1),
                           none(1, nu), none(ny, 1), none(ny, nu), none(nx), none(1), none(ny))  # fmt: skip

    def options(self):
        return {key: getattr(self, key) for key in ("input_size", "state_size", "output_size")}

    def zero_output_(self):
        return self


class Lying(Doubled):
    """The same arrays, another step."""

    def step(self, explicit, input, state):
        return 100 * input[:, : self.output_size], state


def test_arrays_are_judged_where_the_step_is_ours_alone():
    found = verify(Doubled(1, 2, 1))
    assert found.status == "PASS" and found.gamma == pytest.approx(4.0, rel=1e-4)
    with pytest.raises(NotCertifiableError, match="leave its step as it is"):
        verify(Lying(1, 2, 1))


def named(value, base=Doubled):
    return type("Named", (base,), {"name": value})


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (named("r2dn"), "choose another"),
        (named("My Cell"), "lower-case"),
        (type("Half", (Cell,), {"name": "half"}), "lacks"),
        (dict, "no class derived"),
        ("filters", "no class derived"),
    ],
)
def test_what_is_no_cell_is_not_registered(cell, words):
    with pytest.raises(InvalidValueError, match=words):
        register_cell(cell)
