"""What pyproject.toml cannot say: two folders of data that are packed, and the .pth that registers our ids.

Tasks and recipes lie at the top of the checkout; a wheel has them inside the package (`files/assets.py` finds both).

Python runs the .pth at start from where the package is installed; why and what then: robust_policies/gymnasium_hook.py.
The line is inert where the package is gone, as after an editable checkout was moved.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FINDER = """\
import sys; sys.meta_path.insert(0, type("RobustPoliciesFinder", (), {"find_spec": staticmethod(\
lambda name, path=None, target=None: __import__("robust_policies.gymnasium_hook").gymnasium_hook.find(path) \
if name == "gymnasium.envs" and __import__("importlib.util").util.find_spec("robust_policies") else None)}))
"""


DATA = {"_tasks": "envs", "_recipes": "train"}


class BuildWithFinder(build_py):
    """Also packs the data into a wheel, and writes the .pth at the top of a wheel and of an editable one alike."""

    def run(self) -> None:
        """Build, then add the files."""
        super().run()
        for packed, beside in {} if self.editable_mode else DATA.items():
            shutil.copytree(beside, Path(self.build_lib, "robust_policies", packed), dirs_exist_ok=True)
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "robust_policies_gymnasium.pth").write_text(FINDER)


setup(cmdclass={"build_py": BuildWithFinder})
