"""Every wrong value gives one UserError whose message says what would be right."""

import numpy as np
import pytest
import torch

from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError, UnknownNameError, UserError
from robust_policies.networks import (
    ACTIVATIONS,
    LBDN,
    R2DN,
    Dissipative,
    Lipschitz,
    LSTMCell,
    cell_from_config,
    from_flax,
    make_cell,
)


def small(**options):
    return R2DN(2, 3, 1, 4, (5,), **options)


@pytest.mark.parametrize("activation", ["gelu", "silu", "mish", "abs", "sine", 3])
@pytest.mark.parametrize("name", ["r2dn", "ren", "lbdn"])
def test_an_activation_with_slope_outside_the_unit_interval_is_refused(activation, name):
    options = {"r2dn": {"state_size": 3, "features": 4, "hidden_sizes": (5,)}, "lbdn": {"hidden_sizes": (5,)}}
    options = options.get(name, {"state_size": 3, "features": 4})
    with pytest.raises(InvalidValueError) as error:
        make_cell(name, 2, 1, activation=activation, **options)
    assert all(allowed in str(error.value) for allowed in ACTIVATIONS)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0.0},
        {"rate": 1.5},
        {"rate": float("nan")},
        {"init": "zeros"},
        {"guarantee": "lipschitz"},
        {"guarantee": {"type": "lipschitz", "gain": 2}},
        {"guarantee": {"type": "robust"}},
        {"guarantee": Dissipative([[-1.0]], [[0.0]], [[1.0]])},
        {"eps": -1.0},
    ],
)
def test_a_wrong_option_is_refused(options):
    with pytest.raises(UserError):
        small(**options)


@pytest.mark.parametrize("sizes", [(0, 3, 1, 4, (5,)), (2, -1, 1, 4, (5,)), (2, 3, 1, 4.5, (5,)), (2, 3, 1, 4, (0,))])
def test_a_wrong_size_is_refused(sizes):
    with pytest.raises(InvalidValueError):
        R2DN(*sizes)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf"), "2", None])
def test_a_wrong_gamma_is_refused(gamma):
    with pytest.raises(InvalidValueError):
        Lipschitz(gamma)
    with pytest.raises(InvalidValueError):
        LBDN(2, (3,), 1, gamma=gamma)


@pytest.mark.parametrize(
    ("Q", "S", "R"),
    [
        ([[1.0]], [[0.0]], [[1.0]]),
        ([[-1.0]], [[0.0]], [[0.0]]),
        ([[-1.0, 0.5], [0.0, -1.0]], [[0.0, 0.0]], [[1.0]]),
        ([[-1.0]], [[0.0, 0.0]], [[1.0]]),
        ([[float("nan")]], [[0.0]], [[1.0]]),
        ("Q", [[0.0]], [[1.0]]),
    ],
)
def test_a_wrong_supply_rate_is_refused(Q, S, R):
    with pytest.raises(UserError):
        Dissipative(Q, S, R)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(4, 2),),
        (torch.zeros(4, 1, 3),),
        (torch.zeros(0, 1, 2),),
        (torch.zeros(4, 1, 2, dtype=torch.float64),),
        (torch.zeros(4, 1, 2), torch.zeros(2, 3)),
        (torch.zeros(4, 1, 2), torch.zeros(1, 3, dtype=torch.float64)),
        (torch.zeros(4, 1, 2), None, torch.zeros(4, 1)),
        (torch.zeros(4, 1, 2), None, torch.zeros(3, 1, dtype=torch.bool)),
    ],
)
def test_an_array_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ShapeError):
        small()(*arguments)


def test_names_are_suggested():
    with pytest.raises(UnknownNameError, match="Did you mean 'lstm'"):
        make_cell("lstn", 2, 1, state_size=4)
    with pytest.raises(UnknownNameError, match="Did you mean 'features'"):
        make_cell("r2dn", 2, 1, state_size=4, feature=3, hidden_sizes=(4,))
    for option in ({"gamma": 2.0}, {"guarantee": Lipschitz(2.0)}):
        with pytest.raises(UnknownNameError, match=r"no guarantee; 'convex', .*, 'ren' have one, 'lbdn' has a gamma"):
            make_cell("lstm", 2, 1, state_size=4, **option)
    with pytest.raises(InvalidValueError, match="hidden_sizes"):
        make_cell("r2dn", 2, 1, state_size=4, features=3)
    with pytest.raises(UnknownNameError):
        cell_from_config({"type": "os.system"})
    with pytest.raises(InvalidValueError, match="even"):
        LSTMCell(2, 5, 1)


def test_flax_parameters_that_do_not_fit_are_refused():
    with pytest.raises(UnknownNameError):
        from_flax("lipschitz_r2dn", {})
    with pytest.raises(InvalidValueError, match="lack"):
        from_flax("contracting_ren", {"B2": torch.zeros(3, 2).numpy()})
    with pytest.raises(UnknownNameError, match="gamma"):
        from_flax("lipschitz_ren", {}, gama=2.0)
    for wrong in (np.zeros((3, 2), int), np.zeros(3, "V2"), np.array(["a"])):
        with pytest.raises(ShapeError, match="B2 has dtype"):
            from_flax("contracting_ren", {"B2": wrong})


def test_shorthand_gamma_config_and_zero_output():
    for name, more in (("r2dn", {"hidden_sizes": (4,)}), ("ren", {})):
        cell = make_cell(name, 2, 3, state_size=4, features=5, gamma=5.0, **more)
        assert cell.gamma == 5.0 and cell_from_config(cell.config()).gamma == 5.0
        assert make_cell(name, 2, 3, state_size=4, features=5, gamma=None, **more).gamma is None
        outputs, _ = cell.zero_output_()(torch.randn(5, 2, 2))
        assert float(outputs.detach().abs().max()) <= 1e-6
        cell(torch.randn(5, 2, 2))[0].sum().backward()
        assert float(cell.C2.grad.abs().max()) > 0
    with pytest.raises(NotCertifiableError):
        make_cell("gru", 2, 1, state_size=4).metric()
