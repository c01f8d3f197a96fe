"""Frames a second and round trips in a real browser: `python benchmarks/browser.py`, about two minutes.

Runs the tests of tests/test_browser.py that measure, and writes what they recorded to benchmarks/results/browser.json."""
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from stasta_edu.core import written_whole

ROOT = Path(__file__).resolve().parents[1]
MEASURING = "frames_a_second or computed_by_the_kernel"

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run([sys.executable, "-m", "pytest", str(ROOT / "tests" / "test_browser.py"), "-q", "-k", MEASURING, f"--junitxml={report}"], cwd=ROOT)
        if done.returncode: sys.exit("the tests that measure failed; nothing was written")
        found = {p.get("name"): json.loads(p.get("value")) for p in ElementTree.parse(report).iter("property")}
    if not found: sys.exit("nothing was measured: is there a Chromium?")
    chromium = subprocess.run([shutil.which("chromium") or shutil.which("google-chrome"), "--version"], capture_output=True, text=True).stdout.strip()
    record = dict(what="64 frames of 224 x 224 with a heat map and a curve, played at 30 and 60 frames a second; maps of stasta_tiny asked of the kernel",
                  frames_per_second_shown=found["frames_per_second"], round_trip_ms=found["round_trip_ms"], browser=f"{chromium}, headless, software rendering",
                  jupyterlab=version("jupyterlab"), plotly=version("plotly"), anywidget=version("anywidget"), version=version("stasta_edu"),
                  machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, the kernel on 1 thread", command="python benchmarks/browser.py")
    with written_whole(ROOT / "benchmarks" / "results" / "browser.json") as part: part.write_text(json.dumps(record, indent=1) + "\n")
