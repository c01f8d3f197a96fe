"""Time and memory of local_correlation against the ways of notebook 06, as ratios in one run: python benchmarks/correlation.py [--threads 1]

Forward and backward, float32, maps of (7, 64, 28, 28), radius 7: seven pairs of frames at the size of the paper's model. The ways take
turns, and the best of each counts. Written to results/correlation.json."""
import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

from stasta_edu.core import written_whole
from stasta_edu.correlation import _correlation_steps, local_correlation

SHAPE, RADIUS = (7, 64, 28, 28), 7


def shifts(a, b, radius):
    H, W, P = *a.shape[2:], 2 * radius + 1
    b = F.pad(b, (radius,) * 4)
    return torch.stack([torch.stack([(a * b[:, :, i : i + H, j : j + W]).sum(1) for j in range(P)], 1) for i in range(P)], 1)


def unfold(a, b, radius):
    (N, C, H, W), P = a.shape, 2 * radius + 1
    return torch.einsum("nchw,ncijhw->nijhw", a, F.unfold(b, P, padding=radius).view(N, C, P, P, H, W))


def all_pairs(a, b, radius):
    (N, C, H, W), P = a.shape, 2 * radius + 1
    b = F.pad(b, (radius,) * 4)
    Hp, Wp = b.shape[2:]
    return (a.flatten(2).mT @ b.flatten(2)).as_strided((N, P, P, H, W), (H * W * Hp * Wp, Wp, 1, W * Hp * Wp + Wp, Hp * Wp + 1))


WAYS = {"loop over shifts": shifts, "unfold": unfold, "all pairs": all_pairs, "row products, autograd": _correlation_steps, "local_correlation": local_correlation}


def seconds(a, b, radius, repeats):
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(repeats):
        for name, f in WAYS.items():
            start = time.perf_counter()
            f(a, b, radius).sum().backward()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def extra_memory(f, a, b, radius, backward):  # most bytes alive at once beside inputs and result, over the size of the result
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        result = f(a, b, radius)
        if backward: result.backward(torch.ones_like(result))
    changes = sorted((e.start_ns(), e.nbytes()) for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    alive, most = 0, 0
    for _, change in changes: most = max(most, alive := alive + change)
    size = result.numel() * result.element_size()
    given = 2 * size + 2 * a.numel() * a.element_size() if backward else size  # backward: its own gradient, and those of a and b, are results too
    return (most - given) / size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "correlation.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    a, b = (torch.randn(SHAPE).to(memory_format=torch.channels_last).requires_grad_() for _ in "ab")
    times, ways = seconds(a, b, RADIUS, options.repeats), {}
    for name, f in WAYS.items():
        with torch.no_grad(): forward = extra_memory(f, a, b, RADIUS, False)
        ways[name] = dict(ms=round(1000 * times[name], 2), times_slower=round(times[name] / times["local_correlation"], 2),
                          extra_memory_forward=round(forward, 2), extra_memory_both_ways=round(extra_memory(f, a, b, RADIUS, True), 2))
        print(f"{name:24s} {ways[name]['ms']:7.0f} ms   x {ways[name]['times_slower']:5.1f}   memory: forward {forward:4.1f}, with backward {ways[name]['extra_memory_both_ways']:4.1f}")
    record = dict(what=f"forward and backward of {SHAPE} in float32, radius {RADIUS}, best of {options.repeats} turns; memory: most bytes alive beside inputs and results, over the size of the result",
                  seed=0, version=version("stasta_edu"), torch=torch.__version__, machine=f"{platform.system()} {platform.machine()}, {options.threads} CPU thread(s)",
                  command=" ".join(["python benchmarks/correlation.py", *sys.argv[1:]]), ways=ways)
    with written_whole(options.out) as part: part.write_text(json.dumps(record, indent=1) + "\n")
