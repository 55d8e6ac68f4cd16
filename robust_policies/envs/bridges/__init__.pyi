from .rsl_rl import RslRlVecEnv as RslRlVecEnv
from .sb3 import SB3VecEnv as SB3VecEnv
from .sb3 import make_sb3_vec_env as make_sb3_vec_env
from .skrl import SkrlWrapper as SkrlWrapper
