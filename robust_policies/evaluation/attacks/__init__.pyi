from .budget import NORMS as NORMS
from .names import ATTACKS as ATTACKS
from .prepare import prepare_attack as prepare_attack
from .registry import attack_options as attack_options
from .registry import make_attack as make_attack
from .registry import why_not as why_not
