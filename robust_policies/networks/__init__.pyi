from .activations import ACTIVATIONS as ACTIVATIONS
from .baselines import GRUCell as GRUCell
from .baselines import LSTMCell as LSTMCell
from .baselines import MLPCell as MLPCell
from .cell import Cell as Cell
from .convert import from_flax as from_flax
from .convex import ConvexCell as ConvexCell
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
from .guarantees import (
    PeakLipschitz as PeakLipschitz,
)
from .implicit import NemonClassifier as NemonClassifier
from .implicit import NemonLayer as NemonLayer
from .initial import LearnedState as LearnedState
from .initial import StateEncoder as StateEncoder
from .l2ru import L2RU as L2RU
from .lbdn import LBDN as LBDN
from .lbdn import LBDNCell as LBDNCell
from .lipschitz_rnn import LipschitzRNN as LipschitzRNN
from .lipschitz_rnn import published_growth as published_growth
from .nemon import NemonCell as NemonCell
from .neuron_cell import NeuronCell as NeuronCell
from .neuron_cell import RENExplicit as RENExplicit
from .r2dn import R2DN as R2DN
from .registry import CELLS as CELLS
from .registry import cell_from_config as cell_from_config
from .registry import known_cells as known_cells
from .registry import make_cell as make_cell
from .registry import register_cell as register_cell
from .ren import REN as REN
