"""An installed package brings its own copy of the workflow; the rest of the project is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HOME = "armarium/packaged"
"""Where ``armarium.home`` looks for it."""
PARTS = (
    "Snakefile",
    "workflow/Snakefile",
    "workflow/rules",
    "workflow/schemas",
    "workflow/storage",
    "profiles",
    "envs",
)


class WithWorkflow(build_py):
    """Copies the workflow beside the modules; an editable install has the checkout itself."""

    def run(self) -> None:
        super().run()
        for part in () if self.editable_mode else PARTS:
            target = Path(self.build_lib, HOME, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if Path(part).is_dir() else shutil.copyfile
            copy(part, target, **({"dirs_exist_ok": True} if Path(part).is_dir() else {}))


setup(cmdclass={"build_py": WithWorkflow})
