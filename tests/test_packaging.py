"What is installed is what settings.ini says, and it stands without the tools that made it."
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import metadata, requires
from importlib.resources import files
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
modules = sorted(p.stem for p in (root / "stasta_edu").glob("*.py") if not p.stem.startswith("_"))


def test_metadata_comes_from_settings():
    said = metadata("stasta_edu")
    assert (said["Version"], said["Requires-Python"]) == (cfg["version"], f">={cfg['min_python']}")
    names = {re.match(r"[\w-]+", r)[0].replace("-", "_") for r in requires("stasta_edu") if "extra ==" not in r}
    assert names == {re.match(r"[\w-]+", r)[0].replace("-", "_") for r in cfg["requirements"].split()}


def test_every_fact_stands_once():
    "No version or requirement is repeated outside settings.ini (and what nbdev generates from it)."
    for name in ("setup.py", "Makefile", ".ci/run", ".ci/house.py"):
        text = (root / name).read_text(encoding="utf-8")
        assert cfg["version"] not in text and "torch>=" not in text, name


def test_library_needs_no_nbdev():
    "Import every module with nbdev and fastcore made impossible to import."
    code = f"""
import sys
for name in ("nbdev", "fastcore", "execnb", "ghapi"): sys.modules[name] = None
import importlib
for name in {modules!r}: importlib.import_module("stasta_edu." + name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", ["player.js", "player.css"])
def test_static_files_are_found(name):
    assert (files("stasta_edu") / "static" / name).is_file()


def test_the_floor_check_notices(tmp_path):
    "A module that imports from a higher floor is reported with its line."
    house = (root / ".ci" / "house.py").read_text(encoding="utf-8")
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "house.py").write_text(house, encoding="utf-8")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = toy\n")
    (tmp_path / "nbs").mkdir()
    (tmp_path / "toy").mkdir()
    for number, name in ((1, "low"), (2, "high")):
        (tmp_path / "nbs" / f"0{number}_{name}.ipynb").write_text('"#| default_exp ' + name + '"')
    (tmp_path / "toy" / "high.py").write_text("from .low import f\n")
    (tmp_path / "toy" / "low.py").write_text("def f():\n    from toy.high import g\n")
    done = subprocess.run([sys.executable, tmp_path / ".ci" / "house.py", "floors"], capture_output=True, text=True)
    assert done.returncode == 1 and "low.py:2: floor 01 imports high, floor 2" in done.stderr
    (tmp_path / "toy" / "low.py").write_text("f = 1\n")
    done = subprocess.run([sys.executable, tmp_path / ".ci" / "house.py", "floors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
