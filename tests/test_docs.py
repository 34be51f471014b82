"""The documentation is true where that can be tested: links, commands, and the README's tables."""

import re
import sys
from pathlib import Path

import pytest

from vidattn.cli.main import build_parser
from vidattn.patterns import PATTERNS

if sys.version_info >= (3, 11):
    import tomllib
ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(text: str) -> list[str]:
    """Code blocks and code spans."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_local_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]*src=\"([^\"]+)\"", text)
    for target in targets:
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_and_commands_exist(page: Path):
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for code in code_of(page.read_text(encoding="utf-8")):
        for words in re.findall(r"^\s*make((?: [a-z-]+\b(?!=))+)", code, re.MULTILINE):
            assert set(words.split()) <= set(rules), code
        for command in re.findall(r"^\s*vidattn ([a-z]+)", code, re.MULTILINE):
            assert command in commands, code


def test_the_readme_has_working_python():
    for block in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("name", ["patterns", "write_a_pattern"])
def test_the_pages_on_patterns_run(name: str):
    """All Python of a page, in one namespace; patterns that it adds are taken away again."""
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    known, namespace = dict(PATTERNS), {"__name__": name}
    try:
        for block in blocks:
            exec(compile(block, f"{name}.md", "exec"), namespace)
    finally:
        PATTERNS.clear()
        PATTERNS.update(known)


@pytest.mark.parametrize("name", ["patching", "add_a_family"])
def test_the_pages_on_patching_run(name, tmp_path, monkeypatch):
    from tests.patches.tiny_pipelines import build

    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    names = {"pipe": build("flux")}
    for block in blocks:
        exec(compile(block, f"{name}.md", "exec"), names)


def section(title: str) -> str:
    return README.partition(f"## {title}")[2].partition("\n## ")[0]


def test_the_readme_lists_every_pattern():
    listed = set(re.findall(r"^\| `([a-z0-9-]+)`", section("Patterns"), re.MULTILINE))
    assert set(PATTERNS) <= listed


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_readme_gives_a_reason_for_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        r.split(">")[0] for r in [*project["dependencies"], *(r for part in extras.values() for r in part)]
    }
    rows = re.findall(r"^\| (.+?) \|", section("Dependencies"), re.MULTILINE)
    assert wanted <= set(re.findall(r"[\w-]+", " ".join(rows)))


def test_the_folder_map_is_complete():
    listed = section("Folders")
    for folder in (path for path in (ROOT / "vidattn").iterdir() if (path / "__init__.py").exists()):
        assert f"{folder.name}/" in listed, folder.name
    for name in ("benchmarks", "demos", "docs", "tests"):
        assert (f"| {name}/ |" in listed) == (ROOT / name).is_dir(), name
