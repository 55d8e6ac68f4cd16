from .env import FmuEnv as FmuEnv
from .env import FmuState as FmuState
