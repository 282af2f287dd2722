"""An attack, a defense and a training method are one file and one name in a table each: here they are added
to a clone of the packages, with nothing in tests, and used from there as a user does.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ADDED = Path(__file__).parent / "added"
PACKAGES = ("robustclip", "prompts_store", "service", "training", "tests")
START = "import sys; from robustclip.cli import main; sys.exit(main())"
LIST_SCHEMAS = """
import json, sys
from service.app import create_app
from service.config import ServeSettings
print(json.dumps(create_app(ServeSettings(store={"path": sys.argv[1]})).openapi()["components"]["schemas"]))
"""


class Clone:
    """The packages as links in a folder of their own, with a module from `added/` and its name in a table."""

    def __init__(self, folder: Path, module: str, name: str, room: str) -> None:
        self.folder, self.root = folder, folder / "clone"
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package,
                self.root / package,
                copy_function=shutil.copy
                if package == "prompts_store"
                else os.symlink,  # a store takes no links
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        (self.root / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
        shutil.copy(ADDED / f"{module}.py", self.root / room)
        table = self.root / room / "__init__.py"
        text = table.read_text(encoding="utf-8")
        table.unlink()
        text = re.sub(
            r"(?m)^from ", f"from {room.replace('/', '.')}.{module} import {name}\nfrom ", text, count=1
        )
        table.write_text(
            re.sub(r"(?s)( \|[^|]*?)(?=,\s*Field\(disc|\nAnyObj)", rf"\1 | {name}", text, count=1),
            encoding="utf-8",
        )

    def run(self, *command: str, statuses: tuple[int, ...] = (0,)) -> str:
        """What a Python command says, with the clone's packages before the installed ones."""
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode in statuses, done.stdout + done.stderr
        return done.stdout

    def robustclip(self, *arguments: str, statuses: tuple[int, ...] = (0,)) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.run("-c", START, *arguments, "--json", statuses=statuses))

    def probe(self, *options: str) -> Any:
        """A report about a decision of `tiny`."""
        picture = write_pictures(self.folder / "probed", test=1) / "test" / "red_thing" / "0.png"
        decision = ("--labels", "cat,dog,rocket", "--backbone", "tiny", "--eps", "8/255")
        return self.robustclip("probe", str(picture), *decision, *options, statuses=(0, 1))

    def schemas(self) -> dict[str, Any]:
        return json.loads(self.run("-c", LIST_SCHEMAS, str(self.folder / "store")))

    def keeps(self, contract: str, kind: str) -> None:
        """The contract's tests pass for the new kind, and there are some."""
        said = self.run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/contracts/{contract}", "-k", kind
        )
        passed = re.search(r"(\d+) passed", said)
        assert passed is not None
        assert int(passed[1]) >= 6, said

    def layers_hold(self) -> None:
        self.run(
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())",
        )


def test_an_attack_is_one_file_and_one_name(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "carlini_wagner", "CarliniWagner", "robustclip/attacks")
    report = clone.probe("--attack", '{"kind": "carlini_wagner", "steps": 12}', "--defense", "bit_depth:3")
    assert [record["kind"] for record in report["attacks"]] == ["carlini_wagner"] * 2
    assert [record["knowledge"] for record in report["attacks"]] == ["static", "adaptive"]
    assert report["attacks"][1]["params"]["steps"] == 12
    assert {"M1", "M2", "M9"} <= {check["id"] for check in report["diagnostics"]}
    assert "steps" in clone.schemas()["CarliniWagner"]["properties"]
    clone.keeps("test_attacks.py", "CarliniWagner or carlini_wagner")
    clone.layers_hold()


def test_a_defense_is_one_file_and_one_name(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "gaussian_blur", "GaussianBlur", "robustclip/defenses")
    report = clone.probe("--defense", "gaussian_blur:0.8,jpeg", "--steps", "4")
    blur = report["victim"]["defense"][0]
    assert (blur["kind"], blur["params"]["sigma"], blur["gradient"]) == ("gaussian_blur", 0.8, "exact")
    assert {record["knowledge"] for record in report["attacks"]} == {"static", "adaptive"}
    assert {"M1", "M2", "M9"} <= {check["id"] for check in report["diagnostics"]}
    assert "sigma" in clone.schemas()["GaussianBlur"]["properties"]
    clone.keeps("test_defenses.py", "gaussian_blur")
    clone.layers_hold()


def test_a_training_method_is_one_file_and_one_name(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "smoothed_coop", "SmoothedCoOp", "training/learning/objectives")
    pictures, store, runs = tmp_path / "caltech-101", tmp_path / "store", tmp_path / "runs"
    write_pictures(pictures, train=12, test=3)
    common = ("--data", str(pictures), "--backbone", "tiny", "--runs", str(runs))
    start = ("--objective.kind", "smoothed_coop", "--objective.vectors", "2", "--objective.epochs", "1")
    stored = ("--store", str(store))
    trained = clone.robustclip("train", *start, "--name", "smooth", "--activate", *common, *stored)
    assert trained["epochs"] == 1
    evaluated = clone.robustclip("evaluate", "--prompt-set", "smooth", "--limit", "3", *common, *stored)
    assert [row["prompt_set"] for row in evaluated["results"]] == [trained["ref"]]
    tried = ("--objective", "smoothed_coop", "--with", "epochs=1", "--over", "smoothing=0,0.2")
    record = tmp_path / "record.json"
    asked = ("--shots", "4", "--steps", "2", "--eps", "4/255", "--out", str(record))
    clone.run("-c", START, "select", *tried, *asked, *common)
    chosen = json.loads(record.read_text(encoding="utf-8"))["candidates"]
    assert [candidate["settings"] for candidate in chosen] == [{"smoothing": 0}, {"smoothing": 0.2}]
    table, page = tmp_path / "tables" / "toys.toml", tmp_path / "page.md"
    table.parent.mkdir()
    table.write_text(
        'title = "Toys"\nsays = "Few."\nbackbone = "tiny"\ndata = ["caltech-101"]\nshots = 3\nseeds = [0]\n'
        "max_passes = 100\n"
        'methods.smoothed-coop.objective = {kind = "smoothed_coop", epochs = 1, vectors = 2}\n'
        'measures = [{threats = ["clean"]}]\n',
        encoding="utf-8",
    )
    clone.run("-c", START, "suite", str(table), "--data", str(tmp_path), *stored, "--runs", str(runs))
    clone.run("-m", "training.measuring.pages.results", "--folder", str(table.parent), "--page", str(page))
    assert "| smoothed-coop" in page.read_text(encoding="utf-8")
    clone.keeps("test_objectives.py", "smoothed_coop")
    clone.layers_hold()
