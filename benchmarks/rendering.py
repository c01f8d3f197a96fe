"""Clips of ShortActions a second on one core, 8 sampled frames of 64 x 64: python benchmarks/rendering.py [--clips 240]

Best of three passes, by family; and the same items read from the memory-mapped file. Written to results/rendering.json."""
import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from stasta_edu.core import written_whole
from stasta_edu.short_actions import FAMILIES, VERSION, ShortActions


def rate(items, n, passes=3):
    "Items a second, the best of some passes."
    best = float("inf")
    for _ in range(passes):
        start = time.perf_counter()
        for i in range(n): items[i]
        best = min(best, time.perf_counter() - start)
    return round(n / best, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=240)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.clips
    ShortActions("test", length=60)[59]  # textures are made once
    rendered = {family: rate(ShortActions("train", family, length=n), n) for family in ("all", *FAMILIES)}
    with tempfile.TemporaryDirectory() as folder: cached = rate(ShortActions("train", length=n).cached(folder), n)
    record = dict(version=VERSION, seed=0, command="python benchmarks/rendering.py", machine=f"{platform.system()} {platform.machine()}, one core",
                  clips=n, clips_per_second=rendered, cached_clips_per_second=cached)
    with written_whole(Path(__file__).with_name("results") / "rendering.json") as part: part.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
