"""Time of STASTA-ResNet-50 against TSM-ResNet-50, as ratios in one run: python benchmarks/model.py [--threads 2]

One clip of 8 x 224 x 224 (on a GPU --clips, bfloat16), forward (eval, no gradient) and forward + backward (training). The networks take
turns, so that both meet the same machine; the ratio is the median over pairs of neighbouring turns, and its quartiles say how steady it was.
Then the forward pass part by part, time beside arithmetic. Written to results/model.json, on a GPU to results/model_gpu.json."""
import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stasta_edu.backbone import tsm_resnet50, tsm_tiny
from stasta_edu.core import written_whole
from stasta_edu.stasta import stasta_resnet50, stasta_tiny

BUILDERS = {"resnet50": (tsm_resnet50, stasta_resnet50, 224), "tiny": (tsm_tiny, stasta_tiny, 64)}
PARTS = {"tempo": "tempo", "ST-ATA": "st_afs_ff.attend", "FS-FF": "st_afs_ff.fuse", "DM": "dm_ta.displacement", "TA": "dm_ta.attention", "way back": "project"}


def now(device):
    if device == "cuda": torch.cuda.synchronize()
    return time.perf_counter()


def timed(step, device):
    start = now(device)
    step()
    return now(device) - start


def forward(model, video):
    with torch.no_grad(): return model.eval()(video)


def both_ways(model, video):
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model.train()(video).float(), torch.zeros(len(video), dtype=torch.long, device=video.device)).backward()


def compare(models, step, video, turns, device):
    times = [[], []]
    for model in models: step(model, video)  # warm
    for _ in range(turns):
        for model, kept in zip(models, times): kept.append(timed(lambda: step(model, video), device))
    ratios = sorted(b / a for a, b in zip(*times))
    tsm, stasta = (round(1000 * statistics.median(t), 2) for t in times)
    return dict(tsm_ms=tsm, stasta_ms=stasta, ratio=round(statistics.median(ratios), 3), quartiles=[round(ratios[k * len(ratios) // 4], 3) for k in (1, 3)])


def part_times(model, video, turns, device):
    "Milliseconds of each part of the block in a forward pass, and of all the rest: medians."
    times, started, handles = {name: [] for name in (*PARTS, "everything")}, {}, []
    for name, place in PARTS.items():
        part = model.stasta.get_submodule(place)
        handles.append(part.register_forward_pre_hook(lambda m, args, name=name: started.update({name: now(device)})))
        handles.append(part.register_forward_hook(lambda m, args, out, name=name: times[name].append(now(device) - started[name])))
    for turn in range(turns + 1): times["everything"].append(timed(lambda: forward(model, video), device))  # the first one warms
    for handle in handles: handle.remove()
    found = {name: 1000 * statistics.median(t[1:]) for name, t in times.items()}
    return {**{name: found[name] for name in PARTS}, "backbone": found["everything"] - sum(found[name] for name in PARTS)}


def part_macs(build, video):
    "Multiply-accumulates of the same, in G, counted on tensors without content."
    with torch.device("meta"), FlopCounterMode(display=False) as counter: build(num_classes=174).eval()(torch.empty(video.shape))
    counts = {name: sum(n.values()) / 2e9 for name, n in counter.get_flop_counts().items()}
    found = {name: counts.get(f"STASTA.stasta.{place}", 0.) for name, place in PARTS.items()}
    return {**found, "backbone": counts["Global"] - sum(found.values())}


def measure(name, turns, clips, device):
    tsm, stasta, size = BUILDERS[name]
    torch.manual_seed(0)
    models = [build(num_classes=174).to(device, memory_format=torch.channels_last) for build in (tsm, stasta)]  # weights in the order in which features lie
    video = torch.randn(clips if device == "cuda" else 1 if size == 224 else 32, 8, 3, size, size, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        found = {step.__name__: compare(models, step, video, turns, device) for step in (forward, both_ways)}
        ms, macs = part_times(models[1], video, turns, device), part_macs(stasta, video)
    return dict(input=list(video.shape), **found, parts={part: dict(ms=round(ms[part], 3), gmacs=round(macs[part], 4)) for part in ms})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--clips", type=int, default=16, help="on a GPU; a CPU takes one of the large, 32 of the tiny")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = options.out or Path(__file__).with_name("results") / ("model_gpu.json" if device == "cuda" else "model.json")
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.system()} {platform.machine()}, {options.threads} CPU thread(s)"
    record = dict(seed=0, version=version("stasta_edu"), torch=torch.__version__, machine=machine, precision="bfloat16 autocast" if device == "cuda" else "float32",
                  turns=options.turns, command=" ".join(["python benchmarks/model.py", *sys.argv[1:]]), networks={})
    for name in BUILDERS:
        found = record["networks"][name] = measure(name, options.turns, options.clips, device)
        for step in (forward, both_ways):
            r = found[step.__name__]
            print(f"{name:9s} {step.__name__:10s} TSM {r['tsm_ms']:7.0f} ms   STASTA {r['stasta_ms']:7.0f} ms   ratio {r['ratio']:.2f}   quartiles {r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f}", flush=True)
    with written_whole(place) as part: part.write_text(json.dumps(record, indent=1) + "\n")
