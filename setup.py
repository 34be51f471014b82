"""Ships the demo model and the browser app inside the wheel; everything else is in pyproject.toml.

Where the checkout holds demos/models/emoji-flux, the wheel holds it as vidattn/_models/emoji-flux, so
that `vidattn generate` works after `pip install vidattn` with no hub. Otherwise the wheel goes without.
demos/app.py and demos/gui become vidattn/_demo in the same way, for `vidattn demo`.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = {"emoji-flux": ROOT / "demos" / "models" / "emoji-flux"}


class BuildWithModels(build_py):
    """build_py that also copies what is shipped; an editable install reads it from the checkout."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        # A build folder may be left over from a checkout with other files.
        for folder in ("_models", "_demo"):
            shutil.rmtree(Path(self.build_lib) / "vidattn" / folder, ignore_errors=True)
        for source, target in self._shipped_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        shipped = [] if self.editable_mode else [str(target) for _, target in self._shipped_files()]
        return [*super().get_outputs(include_bytecode), *shipped]

    def _shipped_files(self):
        package, demos = Path(self.build_lib) / "vidattn", ROOT / "demos"
        for name, folder in SHIPPED.items():
            for source in sorted(p for p in folder.rglob("*") if p.is_file()):
                yield source, package / "_models" / name / source.relative_to(folder)
        if (demos / "app.py").is_file():
            for source in sorted([*demos.glob("*.py"), *(demos / "gui").glob("*.py")]):
                yield source, package / "_demo" / source.relative_to(demos)


setup(cmdclass={"build_py": BuildWithModels})
