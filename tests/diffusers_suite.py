"""diffusers' own model tests, unpatched and on models that are all patched.

    python -m tests.diffusers_suite DIFFUSERS_CHECKOUT [--all] [--keyword EXPRESSION]

runs the checkout's tests of the families' models against the installed diffusers, once as they are and once
with every supported model patched as soon as it is built: a window larger than any grid, computed by the
torch backend, so that results are those of dense attention but take this package's way. It prints both counts
and fails if a test that passes unpatched fails patched. The tests need the packages ``parameterized`` and
``requests_mock``; those that load from the hub are left out. They compare a model with itself: what they show
is that features survive the patch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOME = ("flux", "wan", "sd3", "hunyuan_video", "cogvideox", "qwenimage", "unet_2d_condition")
"""Files that run unless all are asked for, about two minutes each way."""
OTHERS = (
    "allegro aura_flow chroma chronoedit cogview3plus cogview4 consisid controlnet cosmos"
    " dit_transformer2d easyanimate flux2 hidream hunyuan_1_5 hunyuan_dit hunyuan_video_framepack"
    " latte longcat_image ltx ltx2 lumina2 mochi omnigen ovis_image pixart_transformer2d skyreels_v2"
    " unet_motion unet_spatiotemporal wan_animate wan_vace z_image"
).split()
LEFT_OUT = "not quantization and not lora and not compile and not single_file and not slow"


def files_of(checkout: Path, names: tuple[str, ...]) -> list[str]:
    """The test files of the models of these names, relative to the checkout."""
    found = sorted((checkout / "tests" / "models").rglob("test_models_*.py"))
    by_name = {re.sub("^test_models_(transformer_)?", "", path.stem): path for path in found}
    return [str(by_name[name].relative_to(checkout)) for name in names if name in by_name]


def run(checkout: Path, files: list[str], patched: bool, keyword: str) -> tuple[dict[str, set[str]], str]:
    """Names of the tests by outcome, and pytest's last line."""
    plugin = ["-p", "tests_plugin_patched"] if patched else []
    words = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider", "-rA", *plugin]
    words += ["-m", LEFT_OUT, "-k", f"not HubLoading{f' and ({keyword})' if keyword else ''}", "--tb=line"]
    paths = [str(ROOT), str(checkout), os.environ.get("PYTHONPATH", "")]
    settings = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_TEST_DEVICE": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        words, cwd=checkout, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    outcomes: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for kind, name in re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE):
        outcomes[kind].add(name)
    if not outcomes["PASSED"]:
        raise SystemExit(f"no test passed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    noted = re.findall("^PATCHED (.*)", done.stdout, re.MULTILINE)
    return outcomes, "; ".join([done.stdout.strip().splitlines()[-1], *noted])


PLUGIN = """
import diffusers
import vidattn
from vidattn.patches import routes
from vidattn.patches.model_patch import patch_of

count = calls = 0
computed = routes.attention


def attention(*args, **options):
    global calls
    calls += 1
    return computed(*args, **options)


routes.attention = attention


def wrap(cls):
    original = cls.__init__

    def init(self, *args, **kwargs):
        global count
        original(self, *args, **kwargs)
        if type(self) is cls and patch_of(self) is None:
            vidattn.patch(self, "neighborhood:window=9999", min_tokens=0, backend="torch")
            count += 1

    init.__wrapped__ = original
    cls.__init__ = init


for names in vidattn.supported().values():
    for name in names:
        wrap(getattr(diffusers, name))


def pytest_terminal_summary(terminalreporter):
    print(f"PATCHED {count} models, {calls} attention calls by patterns")
"""


def main() -> int:
    """The command: 0 if no test that passes unpatched fails patched."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers, with its tests")
    parser.add_argument("--all", action="store_true", help="every family's file, about ten minutes each way")
    parser.add_argument("--keyword", default="", help="as pytest's -k")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # without the checkout's own src, so that the installed package is what is tested
        copy = Path(folder)
        shutil.copytree(arguments.checkout / "tests", copy / "tests")
        (copy / "tests_plugin_patched.py").write_text(PLUGIN)
        files = files_of(copy, SOME + (tuple(OTHERS) if arguments.all else ()))
        plain, line = run(copy, files, False, arguments.keyword)
        print(f"{len(files)} files, unpatched: {line}", flush=True)
        patched, line = run(copy, files, True, arguments.keyword)
        print(f"{len(files)} files, patched:   {line}", flush=True)
    lost = sorted(plain["PASSED"] - patched["PASSED"])
    print("\n".join(["pass unpatched, but not patched:", *lost]) if lost else "nothing is lost by patching")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
