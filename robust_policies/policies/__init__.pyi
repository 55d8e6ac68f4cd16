from .bridges.model import policy_from_cell as policy_from_cell
from .deployed import DeployedPolicy as DeployedPolicy
from .feedback import closed_loop_bound as closed_loop_bound
from .linear_part import PolicyLoop as PolicyLoop
from .linear_part import policy_loop as policy_loop
from .local import LocalBounds as LocalBounds
from .local import local_bounds as local_bounds
from .observer_wrapper import ObserverVectorWrapper as ObserverVectorWrapper
from .observer_wrapper import ObserverWrapper as ObserverWrapper
from .return_certificate import ReturnCertificate as ReturnCertificate
from .return_certificate import SensorErrors as SensorErrors
from .returns import certified_return as certified_return
from .sb3.certify import certify_model as certify_model
from .sb3.deploy import deploy as deploy
from .sb3.history import HistoryWrapper as HistoryWrapper
from .sb3.history import VecHistory as VecHistory
from .sb3.recurrent import (
    RecurrentCellCnnPolicy as RecurrentCellCnnPolicy,
)
from .sb3.recurrent import (
    RecurrentCellMultiInputPolicy as RecurrentCellMultiInputPolicy,
)
from .sb3.recurrent import (
    RecurrentCellPolicy as RecurrentCellPolicy,
)
from .sb3.windowed import WindowedExtractor as WindowedExtractor
from .sensors import sensor_errors as sensor_errors
from .smoothed import SmoothedReturn as SmoothedReturn
from .smoothing import smoothed_return as smoothed_return
from .storage import load_policy as load_policy
from .storage import save_policy as save_policy
from .youla.base import YoulaOptions as YoulaOptions
from .youla.policy import YoulaPolicy as YoulaPolicy
from .youla.wrapper import YoulaVectorWrapper as YoulaVectorWrapper
from .youla.wrapper import YoulaWrapper as YoulaWrapper
