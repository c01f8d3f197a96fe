"""Time of STASTA-ResNet-50 against TSM-ResNet-50, as ratios in one run: python benchmarks/model.py [--threads 2] [--out benchmarks/results/model.json]

One clip of 8 x 224 x 224 (on a GPU --clips, bfloat16), forward (eval, no gradient) and forward + backward (training). The networks take
turns, so that both meet the same machine; the ratio is the median over pairs of neighbouring turns, and its quartiles say how steady it was."""
import argparse
import json
import platform
import statistics
import sys
import time

import torch
from torch.nn import functional as F

from stasta_edu.backbone import tsm_resnet50, tsm_tiny
from stasta_edu.core import written_whole
from stasta_edu.stasta import stasta_resnet50, stasta_tiny

BUILDERS = {"resnet50": (tsm_resnet50, stasta_resnet50, 224), "tiny": (tsm_tiny, stasta_tiny, 64)}


def timed(step, device):
    if device == "cuda": torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(model, video):
    with torch.no_grad(): return model.eval()(video)


def both_ways(model, video):
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model.train()(video).float(), torch.zeros(len(video), dtype=torch.long, device=video.device)).backward()


def compare(models, step, video, turns, device):
    times = [[], []]
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for model in models: step(model, video)  # warm
        for _ in range(turns):
            for model, kept in zip(models, times): kept.append(timed(lambda: step(model, video), device))
    ratios = sorted(b / a for a, b in zip(*times))
    return dict(tsm_ms=1000 * statistics.median(times[0]), stasta_ms=1000 * statistics.median(times[1]),
                ratio=statistics.median(ratios), quartiles=[ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--clips", type=int, default=16, help="on a GPU; a CPU takes one")
    parser.add_argument("--only", choices=BUILDERS)
    parser.add_argument("--out", help="write the result here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = dict(command=" ".join(["python benchmarks/model.py", *sys.argv[1:]]), seed=0, torch=torch.__version__, threads=options.threads, turns=options.turns,
                  machine=torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU", precision="bfloat16 autocast" if device == "cuda" else "float32")
    for name, (tsm, stasta, size) in BUILDERS.items():
        if options.only not in (None, name): continue
        torch.manual_seed(0)
        models = [build(num_classes=174).to(device) for build in (tsm, stasta)]
        video = torch.randn(options.clips if device == "cuda" else 1 if size == 224 else 8, 8, 3, size, size, device=device)
        for step in (forward, both_ways):
            r = result[f"{name}, {step.__name__.replace('_', ' ')}"] = compare(models, step, video, options.turns, device)
            print(f"{name:9s} {step.__name__:10s} TSM {r['tsm_ms']:7.0f} ms   STASTA {r['stasta_ms']:7.0f} ms   ratio {r['ratio']:.2f}   quartiles {r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f}")
    if options.out:
        with written_whole(options.out) as partial: partial.write_text(json.dumps(result, indent=1) + "\n")
