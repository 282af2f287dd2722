"""What a user installs: the wheel's content, its commands, and the pins that go with it."""

import inspect
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robustclip.cli import GROUP, summary

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"robustclip", "prompts_store", "service", "training"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("robustclip-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    """The paths inside the wheel."""
    with zipfile.ZipFile(wheel_file) as archive:
        return set(archive.namelist())


def test_the_wheel_s_top_level_is_exactly_the_four_packages(wheel: set[str]) -> None:
    top = {path.partition("/")[0] for path in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


@pytest.mark.parametrize("folder", ["robustclip/backbones", "prompts_store", "service", "training"])
def test_the_wheel_carries_every_file_of_its_packages(wheel: set[str], folder: str) -> None:
    present = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert present
    assert present <= wheel


def test_the_wheel_carries_backbone_weights_and_prompt_sets(wheel: set[str]) -> None:
    assert any(re.fullmatch(r"robustclip/backbones/.+\.safetensors", path) for path in wheel)
    assert any(
        re.fullmatch(r"prompts_store/sets/any/handcrafted/[0-9a-f]{12}\.safetensors", path) for path in wheel
    )
    assert "prompts_store/sets/any/handcrafted/ACTIVE" in wheel


@pytest.mark.slow
def test_the_installed_wheel_serves_without_git_make_or_a_checkout(wheel_file: Path, tmp_path: Path) -> None:
    """In an environment that has our dependencies and the wheel, nothing else of ours."""
    environment, nowhere = tmp_path / "environment", tmp_path / "nowhere"
    nowhere.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, *install, str(wheel_file)], check=True, timeout=120)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    alone = {"PATH": str(nowhere), "HOME": str(nowhere)}
    checked = subprocess.run(
        [environment / "bin" / "robustclip", "serve", "--check"],
        cwd=nowhere,
        env=alone,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "all is well" in checked.stdout
    assert "non-commercial research" in checked.stdout  # the terms of the shipped weights
    where = "import robustclip, service; print(robustclip.__file__, service.__file__)"
    found = subprocess.run(
        [python, "-c", where], cwd=nowhere, env=alone, capture_output=True, text=True, check=True
    )
    assert found.stdout.count(str(packages)) == 2


def test_the_changelog_says_what_this_version_breaks() -> None:
    sections = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    titles = [section.partition("\n")[0] for section in sections]
    (present,) = [section for section in sections if section.startswith(PROJECT["version"])]
    assert present == sections[0], f"the newest section is {titles[0]!r}, the version {PROJECT['version']}"
    assert "\n### Breaks\n- " in present


def test_the_installed_commands_are_the_declared_ones() -> None:
    declared = PROJECT["entry-points"][GROUP]
    assert {entry.name: entry.value for entry in COMMANDS} == declared, (
        "run `make setup`: pyproject.toml changed since"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_can_be_run_and_says_what_it_does(command: EntryPoint) -> None:
    function = command.load()
    assert len(inspect.signature(function).parameters) == 1
    assert 10 < len(summary(command)) <= 100


def test_every_dependency_is_pinned_within_its_range() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pins: dict[str, str] = {}
    for line in lines:
        name, exact, version = line.partition("==")
        assert exact, f"not an exact pin: {line}"
        assert canonicalize_name(name) not in pins, f"pinned twice: {name}"
        pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
