"""Recurrent networks whose stability and robustness hold by construction, and baselines behind the same interface."""

from robust_policies.networks.activations import ACTIVATIONS
from robust_policies.networks.baselines import GRUCell, LSTMCell, MLPCell
from robust_policies.networks.cell import Cell
from robust_policies.networks.convert import from_flax
from robust_policies.networks.guarantees import Contracting, Dissipative, Guarantee, Lipschitz
from robust_policies.networks.lbdn import LBDN, LBDNCell
from robust_policies.networks.r2dn import R2DN
from robust_policies.networks.registry import CELLS, cell_from_config, make_cell
from robust_policies.networks.ren import REN

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "LBDN",
    "R2DN",
    "REN",
    "Cell",
    "Contracting",
    "Dissipative",
    "GRUCell",
    "Guarantee",
    "LBDNCell",
    "LSTMCell",
    "Lipschitz",
    "MLPCell",
    "cell_from_config",
    "from_flax",
    "make_cell",
]
