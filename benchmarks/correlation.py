"""Time and memory of local_correlation against the ways of notebook 06, as ratios in one run: python benchmarks/correlation.py [--threads 1]

Forward and backward, float32, maps of (7, 64, 28, 28), radius 7: seven pairs of frames at the size of the paper's model."""
import argparse
import platform
import time

import torch
from torch.nn import functional as F

from stasta_edu.correlation import _correlation_steps, local_correlation


def shifts(a, b, radius):
    H, W, P = *a.shape[2:], 2 * radius + 1
    b = F.pad(b, (radius,) * 4)
    return torch.stack([torch.stack([(a * b[:, :, i : i + H, j : j + W]).sum(1) for j in range(P)], 1) for i in range(P)], 1)


def all_pairs(a, b, radius):
    (N, C, H, W), P = a.shape, 2 * radius + 1
    b = F.pad(b, (radius,) * 4)
    Hp, Wp = b.shape[2:]
    return (a.flatten(2).mT @ b.flatten(2)).as_strided((N, P, P, H, W), (H * W * Hp * Wp, Wp, 1, W * Hp * Wp + Wp, Hp * Wp + 1))


def seconds(f, a, b, radius, repeats):
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        f(a, b, radius).sum().backward()
        best = min(best, time.perf_counter() - start)
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
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    a, b = (torch.randn(7, 64, 28, 28).to(memory_format=torch.channels_last).requires_grad_() for _ in "ab")
    ways = {"loop over shifts": shifts, "all pairs": all_pairs, "row products, autograd": _correlation_steps, "local_correlation": local_correlation}
    times = {name: seconds(f, a, b, 7, options.repeats) for name, f in ways.items()}
    print(f"torch {torch.__version__}, {options.threads} thread(s), {platform.processor() or platform.machine()}; memory beside inputs and results, over the size of the result")
    for name, t in times.items():
        with torch.no_grad(): forward = extra_memory(ways[name], a, b, 7, False)
        print(f"{name:24s} {1000 * t:7.0f} ms   x {t / times['local_correlation']:5.1f}   memory: forward {forward:4.1f}, with backward {extra_memory(ways[name], a, b, 7, True):4.1f}")
