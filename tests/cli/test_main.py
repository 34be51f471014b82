"""The command line itself: help, versions, exit statuses, doctor, models."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import vidattn
from vidattn import backends
from vidattn.cli import doctor
from vidattn.cli.main import build_parser

if sys.version_info >= (3, 11):
    import tomllib
COMMANDS = ("generate", "show", "report", "bench", "profile", "models", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(vidattn_command, command):
    status, printed, _ = vidattn_command(command, "--help")
    assert status == 0
    examples = printed.partition("examples:")[2].splitlines()
    assert any(line.strip().startswith(f"vidattn {command}") for line in examples)


def test_help_lists_every_command(vidattn_command):
    status, printed, _ = vidattn_command("--help")
    assert status == 0
    for command in COMMANDS:
        assert f"\n    {command}" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_parse(command, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    examples = capsys.readouterr().out.partition("examples:")[2].split("\n\n")[0]
    import shlex

    for line in examples.strip().splitlines():
        words = shlex.split(line.partition(">")[0].partition("   ")[0] if command == "doctor" else line)
        assert words[0] == "vidattn"
        build_parser().parse_args(words[1:])


def test_the_version(vidattn_command):
    assert vidattn_command("--version") == (0, f"vidattn {vidattn.__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("paint",), ("show",)])
def test_bad_command_lines(vidattn_command, words):
    status, printed, errors = vidattn_command(*words)
    assert (status, printed, len(errors.splitlines())) == (2, "", 1)


def test_as_a_module_and_into_a_closed_pipe():
    done = subprocess.run(
        [sys.executable, "-m", "vidattn.cli", "paint"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "paint" in done.stderr
    command = f"{sys.executable} -m vidattn.cli doctor | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_doctor(vidattn_command, monkeypatch):
    status, printed, _ = vidattn_command("doctor")
    assert status == 0
    assert f"vidattn {vidattn.__version__}" in printed
    assert f"torch         {metadata.version('torch')}" in printed
    for name in backends.BACKENDS:
        assert f"  {name}" in printed

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    monkeypatch.setattr(
        backends, "reasons", lambda device=None: {"triton": ["needs CUDA", "not installed"], "torch": []}
    )
    _, printed, _ = vidattn_command("doctor")
    assert "gradio        not installed (optional): pip install 'vidattn[demo]'" in printed
    assert "triton  cannot run: needs CUDA; not installed" in printed
    assert "torch   can run" in printed


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_doctor_knows_the_dependencies_of_pyproject():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split(">")[0] for requirement in requirements}

    assert names(project["dependencies"]) == set(doctor.REQUIRED)
    extras = project["optional-dependencies"]
    for name, extra in doctor.OPTIONAL.items():
        assert name in names(extras[extra])


def test_models(vidattn_command):
    status, printed, _ = vidattn_command("models")
    assert status == 0
    for family, classes in vidattn.supported().items():
        assert f"  {family}" in printed
        assert all(name in printed for name in classes)
