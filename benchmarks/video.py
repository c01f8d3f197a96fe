"""Reading video, measured: python benchmarks/video.py [--quick]

8 frames of a 30 s clip against bare decord; clips a second of the loader with 0, 1, 2 and 4 workers; the index of 10,000 clips, first and second time; memory over
2,000 clips read. Written to results/video.json."""
import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch  # before decord
import decord
import numpy as np
from torch.utils.data import DataLoader

from stasta_edu.core import written_whole
from stasta_edu.datasets import VideoFolder, VideoList
from stasta_edu.transforms import train_transform
from stasta_edu.video import read_frames, write_video


def moving(n, height=240, width=320, seed=0):
    "Texture that drifts, with a little noise in time: neither still nor unlike a video."
    texture = np.random.default_rng(seed).integers(60, 190, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(texture, (t, 2 * t), (0, 1)) for t in range(n)])


def bare(path, indices): return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()


def against_decord(folder, repeats):
    "Milliseconds of both, in turns so that other load meets both; a file is new to the library in each `first`."
    found = {}
    for gop in (12, 250):
        path = write_video(folder / f"gop{gop}.mp4", moving(900), fps=30, gop=gop, quality=28)
        took, rng = {"decord": [], "first": [], "again": []}, np.random.default_rng(0)
        for k in range(repeats):
            indices = np.sort(rng.integers(0, 900, 8)).tolist()
            os.utime(path, (k, k))  # looks changed, so nothing is remembered
            for name, read in [("decord", bare), ("first", read_frames), ("again", read_frames)] if k % 2 else [("first", read_frames), ("again", read_frames), ("decord", bare)]:
                start = time.perf_counter()
                read(path, indices)
                took[name].append(time.perf_counter() - start)
        ratio = {name: round(float(np.median(np.array(took[name]) / took["decord"])), 3) for name in ("first", "again")}
        found[f"keyframe every {gop}"] = dict({f"{name}_ms": round(1000 * float(np.median(t)), 1) for name, t in took.items()}, ratio=ratio)
    return found


def loader_rates(folder, n):
    "Clips a second with that many workers; the second pass, when the workers are up."
    (folder / "set" / "a").mkdir(parents=True)
    source = write_video(folder / "clip.mp4", moving(48), fps=12, quality=28)
    for i in range(n): os.link(source, folder / "set" / "a" / f"{i:04}.mp4")
    rates = {}
    for workers in (0, 1, 2, 4):
        loader = DataLoader(VideoFolder(folder / "set", 8, train_transform(224), train=True), batch_size=8, num_workers=workers, persistent_workers=workers > 0)
        for _ in range(2):
            start = time.perf_counter()
            for _ in loader: pass
            rates[workers] = round(n / (time.perf_counter() - start), 1)
        del loader
    return rates


def index_times(folder, n):
    place = folder / "many"
    place.mkdir()
    source = write_video(folder / "short.mp4", moving(12, 64, 64), fps=12)
    for i in range(n): os.link(source, place / f"{i:05}.mp4") if i % 1000 else (place / f"{i:05}.mp4").write_bytes(source.read_bytes())
    (place / "list.txt").write_text("".join(f"{i:05}.mp4 12 0\n" for i in range(n)))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        VideoList(place / "list.txt")
        times.append(round(time.perf_counter() - start, 2))
    return dict(clips=n, first_s=times[0], second_s=times[1])


def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(path, n):
    "Resident megabytes while reading n clips, each by a reader of its own."
    seen = []
    for k in range(n + 1):
        if k % (n // 8) == 0: seen.append(round(resident(), 1))
        read_frames(path, range(k % 5, 40, 5))
    return dict(clips=n, resident_mb=seen, growth_mb=round(seen[-1] - seen[1], 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, nothing is saved")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        record = dict(seed=0, command="python benchmarks/video.py", machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared",
                      versions=dict(torch=torch.__version__, decord=decord.__version__), eight_frames_of_30_s=against_decord(folder, 6 if quick else 40),
                      loader_clips_per_second=loader_rates(folder, 32 if quick else 160), index=index_times(folder, 1000 if quick else 10_000),
                      memory=memory(folder / "clip.mp4", 200 if quick else 2000))
    if not quick:
        with written_whole(Path(__file__).with_name("results") / "video.json") as part: part.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
