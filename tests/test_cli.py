"The commands from outside: what they print, what they leave behind, what they say when something is wrong, and what a kill costs."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from typer.testing import CliRunner

from stasta_edu.cli import DataOptions, PublishedOptions, RenderedOptions, app, changed, open_split, options_of, read_setup, with_training_view
from stasta_edu.evaluation import PROTOCOLS, load_scores
from stasta_edu.training import Recipe

root = Path(__file__).resolve().parents[1]
SMALL = "--frames 4 --set size=32 --set batch_size=8 --set optimizer=adamw --set schedule=one_cycle --set lr=4e-3 --set dropout=0.0 --device cpu".split()
FORMATS = ["something_v1", "something_v2", "charades"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "As many threads here as in the processes that are started: the same sums in the same order."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    "What `stasta-edu samples` writes."
    folder = tmp_path_factory.mktemp("samples")
    assert "MB" in good("samples", "--out", folder).splitlines()[-1]
    return folder


def call(*arguments):
    "A command in this process."
    return CliRunner().invoke(app, list(map(str, arguments)))


def good(*arguments):
    "What a command prints when all is well."
    done = call(*arguments)
    assert done.exit_code == 0 and not done.stderr, done.output
    return done.stdout


def complains(done, *words, code=1):
    "One line on stderr, with these words in it, and an exit code."
    lines = done.stderr.strip().splitlines()
    assert getattr(done, "exit_code", getattr(done, "returncode", None)) == code and len(lines) == 1, done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def process(*arguments, launcher=()):
    "A command in a process of its own."
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    return subprocess.Popen([sys.executable, *launcher, "-m", "stasta_edu.cli", *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def log(run):
    path = Path(run) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for_steps(child, run, n):
    end = time.monotonic() + 120
    while len(log(run)) < n:
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.01)


# Help and options

def test_help_comes_without_torch():
    heavy = "import sys, stasta_edu.cli; print([m for m in ('torch', 'torchvision', 'decord', 'av', 'plotly', 'accelerate', 'captum') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, cwd=root).stdout == "[]\n"


def test_help_of_each_command():
    names = re.findall(r"^  ([a-z]+) ", good("--help").split("Commands:")[1], re.M)
    assert set(names) >= {"demo", "samples", "train", "evaluate", "predict", "models", "profile"}
    for name in names:
        page = good(name, "--help")
        assert "Usage:" in page and len(page.splitlines()) > 6, name
    for line in good("--help").split("Commands:")[1].splitlines(): assert not line.endswith("..."), line  # short enough to be shown whole
    for option in "--dataset --root --model --frames --run --resume --device --seed --set".split(): assert option in good("train", "--help")


@pytest.mark.parametrize("part", [Recipe(), Recipe.short_actions(), DataOptions(), PublishedOptions(), RenderedOptions()], ids=lambda p: type(p).__name__)
def test_every_field_can_be_typed(part):
    "What a field holds, written down and read back, is the same; no field is forgotten."
    def written(value): return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    changes = [f"{f.name}={written(getattr(part, f.name))}" for f in fields(part)]
    assert changed(changes, part) == [part]
    assert [type(getattr(changed(changes, part)[0], f.name)) for f in fields(part)] == [type(getattr(part, f.name)) for f in fields(part)]


@pytest.mark.parametrize("change, words", [
    ("epoch=3", ["no field 'epoch'", "epochs"]), ("epochs", ["key=value"]), ("epochs=", ["epochs is int"]), ("epochs=2.5", ["epochs is int"]), ("channels_last=maybe", ["channels_last is bool"]),
    ("epochs=0", ["epochs must be at least 1"]), ("optimizer=sdg", ["optimizer must be one of"]), ("milestones=3,x", ["milestones"]), ("strict=false", ["no field 'strict'"]),
    ("size=16", ["size must be at least 32"]), ("family=tempi", ["family must be one of"])])
def test_wrong_fields(tmp_path, change, words):
    complains(call("train", "--set", change, "--run", tmp_path / "run", "--device", "cpu"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, word", [(["--dataset", "kinetics"], "kinetics"), (["--frames", "0"], "frames"), (["--device", "abacus"], "abacus"), (["--colour", "red"], "--colour")])
def test_wrongly_typed_options_end_with_2(arguments, word):
    done = call("train", *arguments)
    assert done.exit_code == 2 and word in done.stderr and "Traceback" not in done.output


# Samples

def test_samples_are_those_of_the_repository(samples):
    "The same annotations, byte for byte; the same clips by name; small."
    def files(folder): return {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and len(p.relative_to(folder).parts) > 1}
    made, kept = files(samples), files(root / "data_samples")
    assert made.keys() == kept.keys()
    lists = [name for name in kept if name.suffix in (".csv", ".json", ".txt")]
    assert len(lists) == 9 and all(made[name].read_bytes() == kept[name].read_bytes() for name in lists)
    assert sum(p.stat().st_size for p in samples.rglob("*") if p.is_file()) <= 3e6


def test_samples_leave_other_folders_alone(tmp_path):
    (tmp_path / "charades").mkdir()
    (tmp_path / "charades" / "mine.txt").write_text("mine")
    complains(call("samples", "--out", tmp_path), "charades")
    assert [p.name for p in tmp_path.rglob("*")] == ["charades", "mine.txt"]


# Training that is killed, interrupted, resumed; evaluation by each protocol

@pytest.mark.parametrize("kind", FORMATS)
def test_killed_and_resumed_and_evaluated(tmp_path, samples, kind):
    "SIGKILL in the middle; --resume gives the same losses, bit for bit; then every protocol."
    def options(run): return ["train", "--dataset", kind, "--root", samples / kind, *SMALL, "--set", "epochs=6", "--run", tmp_path / run]
    child = process(*options("killed"))
    wait_for_steps(child, tmp_path / "killed", 5)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and len(log(tmp_path / "killed")) < 12  # in the middle
    child.communicate()
    said = good("train", "--run", tmp_path / "killed", "--resume", "--device", "cpu")
    assert "goes on after step" in said and "next: stasta-edu evaluate" in said.splitlines()[-1]
    good(*options("whole"))
    assert log(tmp_path / "killed") == log(tmp_path / "whole") and len(log(tmp_path / "whole")) == (18 if kind == "charades" else 12)
    best, same = (load_file(tmp_path / run / "best" / "model.safetensors") for run in ("killed", "whole"))
    assert all(torch.equal(best[name], same[name]) for name in best)
    evaluated(tmp_path, kind)


def evaluated(folder, kind):
    "Each protocol: its plan, its result in the last line, its scores in a file."
    for protocol in PROTOCOLS:
        said = good("evaluate", "--run", folder / "killed", "--protocol", protocol, "--scores", folder / f"{protocol}.npz", "--device", "cpu")
        scores = load_scores(folder / f"{protocol}.npz")
        assert scores.headline() in said.splitlines()[-1] and protocol in said
        assert len(scores.labels) == (9 if kind == "charades" else 8) and ("mAP" in said.splitlines()[-1]) == (kind == "charades")
    one, ten, highest = (load_scores(folder / f"{p}.npz").logits for p in ("1x1", "10x1", "charades"))
    assert not torch.equal(one, ten) and (highest >= ten).all()  # the highest of ten views is no less than their mean
    record = json.loads((folder / "killed" / "best" / "record.json").read_text())
    scores = load_scores(folder / "1x1.npz")  # the view of validation: the same clips, the same weights
    loss = F.binary_cross_entropy_with_logits(scores.logits, scores.labels.float()) if kind == "charades" else F.cross_entropy(scores.logits, scores.labels)
    assert loss.item() == pytest.approx(record["valid_loss"], rel=1e-5)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, samples):
    run = tmp_path / "run"
    child = process("train", "--dataset", "something_v1", "--root", samples / "something_v1", *SMALL, "--set", "epochs=400", "--run", run)
    wait_for_steps(child, run, 3)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in said
    last = len(log(run))
    assert said.strip().splitlines()[-1] == f"stopped; saved after step {last}; go on with: stasta-edu train --run {run} --resume"
    assert (run / "state" / f"step-{last:08}.pt").exists()


def test_two_processes_learn_like_one(tmp_path, samples):
    "accelerate launch, gloo: the same losses; what was validated by two is the same when one does it; one process prints."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    options = ["train", "--dataset", "something_v2", "--root", samples / "something_v2", *SMALL, "--set", "epochs=3"]
    child = process(*options, "--run", tmp_path / "two", launcher=map(str, launcher))
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors[-3000:]
    assert "processes: 2" in said and len([line for line in said.splitlines() if line.startswith("model ")]) == 1 and said.count("next: ") == 1
    good(*options, "--set", "micro_batch=4", "--run", tmp_path / "one")  # batch norm sees halves of a batch in both cases
    two, one = ([line["loss"] for line in log(tmp_path / run)] for run in ("two", "one"))
    assert len(two) == 6 and two == pytest.approx(one, rel=1e-4)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    good("evaluate", "--run", tmp_path / "two", "--scores", tmp_path / "two.npz", "--device", "cpu")
    scores, record = load_scores(tmp_path / "two.npz"), json.loads((tmp_path / "two" / "best" / "record.json").read_text())
    assert scores.top(1) == pytest.approx(record["top1"]) and F.cross_entropy(scores.logits, scores.labels).item() == pytest.approx(record["valid_loss"], rel=1e-5)


# A run on rendered clips, and what can be done with it

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Two steps on rendered clips."
    folder = tmp_path_factory.mktemp("rendered") / "run"
    said = good("train", *SMALL, "--set", "length=12", "--set", "epochs=1", "--seed", "3", "--run", folder)
    assert re.search(r"^data +short_actions: 12 clips to train on, 12 to validate, 12 classes", said, re.M) and "seed=3" in said and "0.33 M parameters" in said
    return folder


def test_the_run_remembers(run):
    setup = read_setup(run)
    assert (setup.dataset, setup.model, setup.frames, setup.data.size, setup.data.length, len(setup.classes)) == ("short_actions", "stasta_tiny", 4, 32, 12, 12)
    assert json.loads((run / "recipe.json").read_text())["seed"] == 3


def test_a_moved_run_can_be_evaluated(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    try: assert "12 clips" in good("evaluate", "--run", moved, "--device", "cpu").splitlines()[-1]
    finally: moved.rename(run)


def test_other_data_with_other_classes_is_refused(run, samples):
    "Something-Something sorts its labels, ShortActions does not: number 0 is another class."
    complains(call("evaluate", "--run", run, "--dataset", "something_v1", "--root", samples / "something_v1"), "classes", "number 0")
    complains(call("evaluate", "--run", run, "--dataset", "something_v1"), "--root")
    complains(call("evaluate", "--run", run, "--split", "tset"), "tset", "train, validation, test")
    complains(call("evaluate", "--run", run, "--protocol", "5x5"), "5x5", "10x3")
    complains(call("evaluate", "--run", run, "--scores", "scores.json"), ".npz")


def test_a_run_is_not_mixed_with_another(run):
    before = (run / "log.jsonl").read_text()
    complains(call("train", "--run", run, "--device", "cpu"), "holds a run already", "--resume")
    complains(call("train", "--run", run, "--resume", "--model", "tsn_tiny"), "stasta_tiny", "tsn_tiny")
    complains(call("train", "--run", run, "--resume", "--set", "flip=0"), "flip")
    done = call("train", "--run", run, "--resume", "--set", "lr=1", "--device", "cpu")
    complains(done, "lr was 0.004 and is 1.0")
    assert (run / "log.jsonl").read_text() == before


def test_predict(run):
    clip = next((run / "videos" / "train").rglob("*.mp4"))
    lines = good("predict", clip, "--run", run, "--device", "cpu").splitlines()
    assert "4 frames of 32x32" in lines[0] and len(lines) == 7 and lines[1].endswith(lines[-1].removeprefix("answer: "))
    done = call("predict", clip, "--run", run, "--json", "--device", "cpu")
    answers = json.loads(done.stdout)["answers"]
    shares = [a["probability"] for a in answers]
    assert len(answers) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 1 and {a["label"] for a in answers} <= set(read_setup(run).classes)


def test_predict_says_the_same_as_evaluate(run, tmp_path):
    good("evaluate", "--run", run, "--split", "validation", "--scores", tmp_path / "s.npz", "--device", "cpu")
    scores = load_scores(tmp_path / "s.npz")
    setup = read_setup(run)
    clip = open_split(setup, "validation", run / "videos").items[5][0]
    answers = json.loads(call("predict", clip, "--run", run, "--json", "--device", "cpu").stdout)["answers"]
    for answer in answers: assert answer["probability"] == pytest.approx(scores.logits[5].softmax(0)[setup.classes.index(answer["label"])].item(), rel=1e-4)


def test_clips_and_weights_that_cannot_be_read(run, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for name, word in (("broken.mp4", "broken.mp4"), ("nowhere.mp4", "no such file"), ("", "numbered pictures")):
        done = call("predict", tmp_path / name, "--run", run, "--device", "cpu")
        assert done.exit_code == 1 and word in done.stderr.strip().splitlines()[-1] and len(done.stderr.strip().splitlines()) == 1
    complains(call("predict", tmp_path / "broken.mp4", "--run", tmp_path), "holds no run")
    weights = run / "best" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:1000])
        complains(call("evaluate", "--run", run, "--device", "cpu"), "model.safetensors", "cannot be read")
        weights.unlink()
        complains(call("evaluate", "--run", run, "--device", "cpu"), "no weights yet", "--resume")
    finally: weights.write_bytes(whole)


@pytest.mark.parametrize("arguments, words", [
    (["--model", "stasta_tinny"], ["stasta_tinny", "stasta_tiny"]), (["--model", "stasta_tiny", "--frames", "7"], ["7", "alpha"]), (["--dataset", "charades"], ["--root"]),
    (["--dataset", "charades", "--root", "nowhere"], ["nowhere", "Charades_v1"]), (["--dataset", "folder", "--root", "nowhere"], ["nowhere", "train"]), (["--resume"], ["holds no run"]),
    (["--weights", "nowhere.pth"], ["nowhere.pth"]), (["--set", "loss=binary_cross_entropy", "--set", "length=12"], ["loss", "one"])])
def test_what_train_refuses(tmp_path, arguments, words):
    complains(call("train", "--run", tmp_path / "run", "--device", "cpu", *arguments), *words)
    assert not (tmp_path / "run" / "setup.json").exists() and not (tmp_path / "run" / "log.jsonl").exists()


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("I am a file")
    complains(call("train", "--run", tmp_path / "file" / "run", "--set", "length=12", "--device", "cpu"), "file")
    complains(call("samples", "--out", tmp_path / "file"), "file")
    assert (tmp_path / "file").read_text() == "I am a file" and len(list(tmp_path.iterdir())) == 1


def test_a_clip_that_cannot_be_read_is_named(tmp_path, run):
    "In a folder data set nobody looks at a clip before training does."
    for split in ("train", "validation"):
        for k in range(2):
            (tmp_path / split / f"class {k}").mkdir(parents=True)
            for path in sorted((run / "videos" / split).rglob("*.mp4"))[k : k + 1]: (tmp_path / split / f"class {k}" / path.name).write_bytes(path.read_bytes())
    bad = next((tmp_path / "train" / "class 1").iterdir())
    bad.write_bytes(bad.read_bytes()[:700])
    options = ["train", "--dataset", "folder", "--root", tmp_path, *SMALL, "--set", "epochs=1"]
    complains(call(*options, "--run", tmp_path / "run"), bad.name)
    good(*options, "--set", "on_error=skip", "--run", tmp_path / "patient")
    assert json.loads((tmp_path / "patient" / "history.json").read_text())[-1]["skipped"] > 0


def test_flips_know_the_names_of_the_classes(run, tmp_path):
    "Left becomes right in the mirror, in rendered clips and in class folders with underscores."
    setup = read_setup(run)
    ds = with_training_view(open_split(setup, "train", run / "videos", train=True), setup.data)
    left, right = (ds.classes.index(next(c for c in ds.classes if c.lower().endswith(side))) for side in ("to the left", "to the right"))
    assert ds.transforms.partners[left] == right and ds.transforms.partners[right] == left
    for name in ("push_left", "push_right"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "clip.mp4").touch()
    from stasta_edu.datasets import VideoFolder
    assert with_training_view(VideoFolder(tmp_path / "train"), options_of("folder")).transforms.partners == [1, 0]


# Lists

def test_models():
    lines = good("models", "stasta").splitlines()
    assert len(lines) == 6 and re.search(r"^stasta_resnet50 +24\.89 M +37\.\d\d G$", lines[3]) and lines[-1].startswith("3 models")
    complains(call("models", "resnext"), "resnext")


def test_profile():
    lines = good("profile", "--model", "stasta_tiny", "--size", 32, "--frames", 4, "--batch-size", 1, "--device", "cpu").splitlines()
    assert lines[2].startswith("stasta_tiny") and lines[3].startswith("tsm_tiny") and re.search(r"stasta_tiny to tsm_tiny: 1\.\d\d x the arithmetic, [\d.]+ x the time", lines[-1])
    complains(call("profile", "--model", "stasta_tinny"), "stasta_tinny")
