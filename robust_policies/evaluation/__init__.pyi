from .certify import certify_run as certify_run
from .episodes import run_episodes as run_episodes
from .report.page import write_report as write_report
from .run import evaluate_run as evaluate_run
from .suite import SUITES as SUITES
from .suite import Suite as Suite
from .suite import suite_named as suite_named
