from .activations import ACTIVATIONS as ACTIVATIONS
from .baselines import GRUCell as GRUCell
from .baselines import LSTMCell as LSTMCell
from .baselines import MLPCell as MLPCell
from .cell import Cell as Cell
from .convert import from_flax as from_flax
from .guarantees import (
    Contracting as Contracting,
)
from .guarantees import (
    Dissipative as Dissipative,
)
from .guarantees import (
    Guarantee as Guarantee,
)
from .guarantees import (
    Lipschitz as Lipschitz,
)
from .initial import LearnedState as LearnedState
from .initial import StateEncoder as StateEncoder
from .lbdn import LBDN as LBDN
from .lbdn import LBDNCell as LBDNCell
from .r2dn import R2DN as R2DN
from .registry import CELLS as CELLS
from .registry import cell_from_config as cell_from_config
from .registry import make_cell as make_cell
from .ren import REN as REN
