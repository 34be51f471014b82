"""Ships the demo model inside the wheel; everything else is in pyproject.toml.

Where the checkout holds demos/models/emoji-flux, the wheel holds it as vidattn/_models/emoji-flux, so
that `vidattn generate` works after `pip install vidattn` with no hub. Otherwise the wheel goes without.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = {"emoji-flux": ROOT / "demos" / "models" / "emoji-flux"}


class BuildWithModels(build_py):
    """build_py that also copies the demo models; an editable install reads them from the checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        # A build folder may be left over from a checkout with other model files.
        shutil.rmtree(Path(self.build_lib) / "vidattn" / "_models", ignore_errors=True)
        for source, target in self._model_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        models = [] if self.editable_mode else [str(target) for _, target in self._model_files()]
        return [*super().get_outputs(include_bytecode), *models]

    def _model_files(self):
        for name, folder in SHIPPED.items():
            for source in sorted(p for p in folder.rglob("*") if p.is_file()):
                yield source, Path(self.build_lib) / "vidattn" / "_models" / name / source.relative_to(folder)


setup(cmdclass={"build_py": BuildWithModels})
