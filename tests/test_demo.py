"The main job from outside: `stasta-edu demo` in an empty folder, its report, and what happens when it cannot write."
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

command = [str(Path(sys.executable).with_name("stasta-edu")), "demo", "--device", "cpu"]
environment = {**os.environ, "OMP_NUM_THREADS": "2", "COLUMNS": "200"}


def run(arguments, cwd, **options):
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The demo, five steps long."
    folder = tmp_path_factory.mktemp("demo")
    done = run(["--steps", "5", "--seed", "3"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_it_says_what_it_does_and_ends_in_one_line(demo):
    folder, done = demo
    lines = done.stdout.strip().splitlines()
    assert "ShortActions" in lines[0] and "seed 3" in lines[0]
    assert re.search(r"STASTA [\d.]+% top-1, TSN [\d.]+%, chance [\d.]+%; .*report\.html", lines[-1])


def test_everything_is_there_and_nothing_else(demo):
    folder, _ = demo
    assert [p.name for p in folder.iterdir()] == ["demo"]
    assert {p.name for p in (folder / "demo").iterdir()} == {"report.html", "results.json", "videos", "weights"}
    videos = list((folder / "demo" / "videos").rglob("*.mp4"))
    results = json.loads((folder / "demo" / "results.json").read_text())
    assert len(videos) == results["clips"]["train"] + results["clips"]["test"]
    for model in results["models"].values():
        assert model["steps"] == 5 and 0 <= model["top1"] <= model["top5"] <= 1
        assert sum(map(sum, model["confusion"])) == results["clips"]["test"]


def test_results_name_their_origin(demo):
    folder, _ = demo
    results = json.loads((folder / "demo" / "results.json").read_text())
    assert results["seed"] == 3 and results["command"] == "stasta-edu demo --seed 3 --steps 5 --device cpu"
    for key in ("version", "benchmark", "machine", "seconds", "torch"):
        assert results[key], key


def test_the_report_stands_alone(demo):
    "One file: no network, no kernel, no path of this machine, and every promised part is in it."
    folder, _ = demo
    page = (folder / "demo" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""<(?:script|link|img|iframe|video)\b[^>]*(?:src|href)\s*=\s*["'](?:https?:)?//""", page)
    assert str(folder) not in page and "/home/" not in page
    for word in ("Importance", "Displacement", "Grad-CAM", "Learning curve", "Confusion", "chance", "TSN", "STASTA"):
        assert word in page, word
    assert len(page) < 12e6


def test_same_seed_same_numbers(demo, tmp_path):
    folder, _ = demo
    assert run(["--steps", "5", "--seed", "3"], tmp_path).returncode == 0
    first, second = (json.loads((f / "demo" / "results.json").read_text()) for f in (folder, tmp_path))
    for name in first["models"]:
        for key in ("losses", "top1", "top5", "confusion"):
            assert first["models"][name][key] == second["models"][name][key], (name, key)


def complains(done, *words):
    message = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert all(word in message[-1] for word in words), message[-1]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("I am a file")
    complains(run(["--steps", "1", "--out", "file/demo"], tmp_path), "file", "cannot write")
    complains(run(["--steps", "1", "--out", "file"], tmp_path), "file", "cannot write")
    assert (tmp_path / "file").read_text() == "I am a file" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="how to take the superuser's privilege away is known for Linux alone")
def test_a_place_without_permission():
    "The superuser may write everywhere; so the demo is run without that privilege (CAP_DAC_OVERRIDE), whoever runs the test."
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        complains(run(["--steps", "1"], place, preexec_fn=lambda: libc.prctl(24, 1, 0, 0, 0)), "cannot write", "ermission denied")
        assert os.listdir(place) == []


def test_a_full_disk(tmp_path):
    "A limit of 100 kB on any file stands in for the full disk: the weights are larger."
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = run(["--steps", "1"], tmp_path, preexec_fn=limit)
    complains(done, "cannot write")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments, word", [(["--steps", "0"], "--steps"), (["--device", "abacus"], "abacus")])
def test_wrong_options(tmp_path, arguments, word):
    done = run(arguments, tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr and word in done.stderr
    assert list(tmp_path.iterdir()) == []
