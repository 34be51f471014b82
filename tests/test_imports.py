"""Imports go one way, optional packages are optional, and importing vidattn is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vidattn"

# What each part may import of ours. A file or folder that is not named here belongs to the core.
CORE = {"core", "kernels"}
PATCHES = CORE | {"patches"}
ALLOWED = {
    "kernels": {"kernels"},
    "core": CORE,
    "bench": CORE | {"bench"},
    "drawing": CORE | {"drawing"},
    "backbones": CORE | {"backbones"},
    "patches": PATCHES,
    "pipelines": PATCHES | {"pipelines"},
    "distill": PATCHES | {"distill"},
    "cli": PATCHES | {"cli", "bench", "drawing", "backbones", "pipelines", "distill"},
}
HOST_PACKAGES = {"diffusers", "transformers", "accelerate", "peft"}
OPTIONAL = {"triton", "xformers", "natten", "timm", "gradio", "matplotlib"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(module: str) -> str:
    """The part that a module of ours belongs to; the package itself is the core's surface."""
    name = (module.split(".") + [""])[1]
    return name if name in ALLOWED else "core"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported together with the file) for each import but type checking's."""
    pending: list[tuple[ast.AST, bool]] = [(tree, True)]
    while pending:
        node, at_once = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += [(child, at_once) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from vidattn import patches` imports the part patches
            names = [f"vidattn.{a.name}" for a in node.names] if node.module == "vidattn" else [node.module]
            yield from ((name, at_once) for name in names)
        inside = at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]


def test_the_reader_of_imports_sees_through_functions_and_type_checking():
    source = "import a.b\nif TYPE_CHECKING:\n    import c\n"
    source += "def f():\n    from d import e\nfrom vidattn import patches"
    assert sorted(imports(ast.parse(source))) == [("a.b", True), ("d", False), ("vidattn.patches", True)]
    assert part_of("vidattn.patches.api") == "patches"
    assert part_of("vidattn.plan") == part_of("vidattn") == part_of("vidattn.TokenLayout") == "core"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path: Path):
    part = part_of(module_of(path))
    for name, at_once in imports(ast.parse(path.read_text(encoding="utf-8"))):
        package = name.split(".")[0]
        assert package not in {"demos", "tests", "benchmarks"}, f"the package imports {name}"
        if package == "vidattn":
            assert part_of(name) in ALLOWED[part], f"{part} must not import {name}"
        if package in HOST_PACKAGES:
            assert part in PATCHES - CORE or part in {"pipelines", "distill", "cli"}, f"{part} imports {name}"
        if package in OPTIONAL and at_once:
            assert part == "kernels", f"{name} is optional: import it in the function that needs it"


def run_python(code: str) -> str:
    """Run code in a fresh interpreter that knows the same installation; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_vidattn_needs_no_optional_package():
    blocked = sorted(HOST_PACKAGES | OPTIONAL)
    run_python(f"""
import sys, torch
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import vidattn
layout = vidattn.TokenLayout(grid=(1, 8, 8), text_before=4)
q, k, v = torch.randn(3, 1, layout.tokens, 2, 16)
out = vidattn.attention(q, k, v, vidattn.patterns.from_text("neighborhood:window=3x3"), layout)
assert out.shape == q.shape
assert not set({blocked!r}) & set(sys.modules)
""")


def test_importing_vidattn_takes_under_300_ms_beyond_torch():
    # Processor time, and the best of three, because other tests run at the same time.
    code = "import time, torch; t = time.process_time(); import vidattn; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.3
