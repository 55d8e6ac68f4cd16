"""Everything is in pyproject.toml but one file: the .pth that registers our ids when Gymnasium is imported.

Python runs it at start from where the package is installed; why and what then: robust_policies/gymnasium_hook.py.
The line is inert where the package is gone, as after an editable checkout was moved.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FINDER = """\
import sys; sys.meta_path.insert(0, type("RobustPoliciesFinder", (), {"find_spec": staticmethod(\
lambda name, path=None, target=None: __import__("robust_policies.gymnasium_hook").gymnasium_hook.find(path) \
if name == "gymnasium.envs" and __import__("importlib.util").util.find_spec("robust_policies") else None)}))
"""


class BuildWithFinder(build_py):
    """Also writes the .pth, at the top of a wheel and of an editable one alike."""

    def run(self) -> None:
        """Build, then add the file."""
        super().run()
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "robust_policies_gymnasium.pth").write_text(FINDER)


setup(cmdclass={"build_py": BuildWithFinder})
