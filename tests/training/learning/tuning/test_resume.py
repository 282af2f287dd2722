"""A run that nothing warned: killed in the middle of its third epoch by a signal that can't be caught, then
started again.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tuning import silent

from robustclip.models.clip import Clip
from training.data.folders import load_data
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.loop import Fitted, fit

SMALL = {"vectors": 2, "epochs": 4, "batch": 4}
CASES: dict[str, dict[str, object]] = {
    "coop": {"kind": "coop"},
    "advpt": {"kind": "advpt", "steps": 2},
    "advpt_plus": {"kind": "advpt_plus", "steps": 2, "refresh": 2},
    "apt": {"kind": "apt"},
    "fap": {"kind": "fap", "average": 0.9},
    "capt": {"kind": "capt", "warm_start": True, "alpha_rule": "loss_ratio"},
    "apd": {"kind": "apd", "teacher": "online_ema"},
    "apd-offline": {"kind": "apd", "teacher": "offline", "teacher_epochs": 2},
}
COUNT = 9  # pictures: batches of 4, 4 and 1
KILLED_AT = 2 * COUNT + 4

KILL_ALL = """
import json, os, signal, sys
from pathlib import Path
import torch
from robustclip.models.clip import load_clip
from training.data.folders import load_data
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.loop import fit

torch.set_num_threads(1)
pictures, folder, cases, count, killed_at = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), \
int(sys.argv[4]), int(sys.argv[5])
clip, data = load_clip("tiny"), load_data(pictures, "train")

def progress(done, total, what):
    if what.startswith("tuning") and done == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)

for name, options in cases.items():  # one import of torch for all
    child = os.fork()
    if not child:
        objective = OBJECTIVES[options["kind"]].model_validate(options)
        examples = objective.prepare(clip, data, torch.arange(0, 4 * count, 4), seed=3, folder=folder / \
"cache", progress=progress)
        fit(clip, objective, examples, data.labels, seed=3, checkpoint=folder / name, progress=progress)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name
"""


KILL_AT_RANDOM = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from robustclip.models.clip import load_clip
from training.data.folders import load_data
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.loop import fit

torch.set_num_threads(1)
pictures, folder, options, count, kills = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), \
int(sys.argv[4]), int(sys.argv[5])
clip, data = load_clip("tiny"), load_data(pictures, "train")
objective = OBJECTIVES[options["kind"]].model_validate(options)

def learn(checkpoint, progress):
    examples = objective.prepare(clip, data, torch.arange(0, 4 * count, 4), seed=3, folder=folder / \
"cache", progress=progress)
    return fit(clip, objective, examples, data.labels, seed=3, checkpoint=checkpoint, progress=progress)

began = time.monotonic()
whole = learn(folder / "whole", lambda done, total, what: None)
seconds, moments, story, run = time.monotonic() - began, random.Random(5), [], 0
while len(story) < kills:
    checkpoint, first = folder / f"killed-{run}", folder / f"first-{len(story)}"
    child = os.fork()
    if not child:
        def progress(done, total, what):
            if what.startswith("tuning") and not first.exists():
                first.write_text(str(done))
        learn(checkpoint, progress)
        os._exit(0)
    time.sleep(moments.uniform(0, 0.5) * seconds)
    os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    if ended == 0:
        run += 1  # it was faster: another one
        first.unlink(missing_ok=True)
        continue
    story.append({"run": run, "first": int(first.read_text() or 0) if first.exists() else 0})
    if checkpoint.exists():
        (folder / f"after-{len(story) - 1}").write_bytes(checkpoint.read_bytes())
print(json.dumps(story))
"""


def run(clip: Clip, pictures: Path, folder: Path, name: str, checkpoint: str) -> Fitted:
    objective = OBJECTIVES[str(CASES[name]["kind"])].model_validate({**SMALL, **CASES[name]})
    data = load_data(pictures, "train")
    examples = objective.prepare(
        clip, data, torch.arange(0, 4 * COUNT, 4), seed=3, folder=folder / "cache", progress=silent
    )
    return fit(
        clip, objective, examples, data.labels, seed=3, checkpoint=folder / checkpoint, progress=silent
    )


@pytest.fixture(scope="module")
def killed(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every case, each left by a killed process."""
    folder = tmp_path_factory.mktemp("killed")
    cases = json.dumps({name: {**SMALL, **options} for name, options in CASES.items()})
    subprocess.run(
        [sys.executable, "-c", KILL_ALL, str(picture_folder), str(folder), cases, str(COUNT), str(KILLED_AT)],
        check=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_with_the_same_bits(
    tiny: Clip, picture_folder: Path, killed: Path, name: str
) -> None:
    resumed = run(tiny, picture_folder, killed, name, name)
    whole = run(tiny, picture_folder, killed, name, f"{name}-whole")
    assert whole.history == resumed.history
    assert 0 < resumed.text_passes < whole.text_passes  # something was kept
    expected, found = load_file(killed / f"{name}-whole"), load_file(killed / name)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.slow
def test_what_methods_remember_is_kept(killed: Path) -> None:
    names = {
        name: {key.split(".")[0] + "." + key.split(".")[1] for key in load_file(killed / name)}
        for name in ("capt", "fap", "advpt_plus", "apd")
    }
    assert {"memory.change", "memory.fresh", "memory.ratio"} <= names["capt"]
    assert {"average.text", "average.visual"} <= names["fap"]
    assert "memory.bank" in names["advpt_plus"]
    assert "memory.teacher" in names["apd"]


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_what_no_checkpoint_held_and_spoil_no_file(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "kind": "capt", "epochs": 12}
    script = [
        sys.executable,
        "-c",
        KILL_AT_RANDOM,
        str(picture_folder),
        str(tmp_path),
        json.dumps(options),
        str(COUNT),
        "10",
    ]
    story = json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout)
    assert len(story) == 10
    epochs: dict[int, int] = {}
    for number, event in enumerate(story):
        assert event["first"] in (
            0,
            epochs.get(event["run"], 0) * COUNT + 4,
        )  # it went on right behind the last checkpoint
        held = tmp_path / f"after-{number}"
        if held.exists():  # whatever bears a name is whole
            with safe_open(held, framework="pt") as file:
                assert set(file.keys()) == set(load_file(held))
                epochs[event["run"]] = len(json.loads(file.metadata()["history"]))
    assert max(epochs.values()) > 0
    objective = OBJECTIVES["capt"].model_validate(options)
    data = load_data(picture_folder, "train")
    examples = objective.prepare(
        tiny, data, torch.arange(0, 4 * COUNT, 4), seed=3, folder=tmp_path / "cache", progress=silent
    )
    last = tmp_path / f"killed-{story[-1]['run']}"
    fit(tiny, objective, examples, data.labels, seed=3, checkpoint=last, progress=silent)
    expected, found = load_file(tmp_path / "whole"), load_file(last)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
