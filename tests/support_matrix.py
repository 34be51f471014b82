"""The table of model families in ``docs/families.md``, and in the README where it has the markers.

    python -m tests.support_matrix [--run]

writes it from the data that the tests of the families take their cases from
(``tests/patches/families/support.py``): a "yes" is a test. With ``--run`` those tests run first, and nothing
is written unless they pass. A test compares the committed tables with what this makes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.patches.families.support import FEATURES, cell, diffusion_families
from vidattn.patches.families._unfit import UNFIT

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs" / "families.md", ROOT / "README.md")
BEGIN, END = "<!-- support matrix: begin -->", "<!-- support matrix: end -->"


def table() -> str:
    """The families' table, and the models that are refused, as Markdown."""
    rows = [("family", "model classes", *FEATURES, "guidance")]
    rows += [("---",) * len(rows[0])]
    for family in diffusion_families():
        names = ", ".join(f"`{name}`" for name in family.classes)
        guidance = "one batch" if family.guidance else "two calls"
        rows.append((family.name, names, *(cell(family.name, feature) for feature in FEATURES), guidance))
    refused = [f"- `{name}`: {reason}." for name, reason in UNFIT.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", "Refused, with the reason in the error:", "", *refused])


def with_table(text: str) -> str:
    """A page with the table between its markers; as it was if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n\n{table()}\n\n{end}{after}" if begin and end else text


def main() -> int:
    """The command: 0 if the tables are written."""
    parser = argparse.ArgumentParser(description="Write the table of model families.")
    parser.add_argument("--run", action="store_true", help="run the families' tests first")
    if parser.parse_args().run:
        tests = [ROOT / "tests" / "patches" / name for name in ("families", "test_features.py")]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", *map(str, tests)], cwd=ROOT, check=False)
        if done.returncode:
            return 1
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(with_table(text), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'written' if BEGIN in text else 'has no markers'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
