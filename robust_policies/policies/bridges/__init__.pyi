from .rsl_rl import RslRlCellModel as RslRlCellModel
from .skrl import SkrlCellPolicy as SkrlCellPolicy
from .skrl import SkrlCellValue as SkrlCellValue
from .skrl import SkrlPPO as SkrlPPO
