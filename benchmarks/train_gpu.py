"""A real run of the paper's model, and TSM beside it: python benchmarks/train_gpu.py [--steps 300] [--out benchmarks/results/train_gpu.json]

ShortActions at 224 pixels, 8 frames, batch 32, bfloat16, by the paper's recipe. For each model: clips a second, memory, utilisation of the GPU's arithmetic
(3 x forward, 2 operations a multiply-accumulate, over the GPU's peak), and the log of the losses. The ratio of step times is taken from the steps alone,
without the time in which a step waits for data. On a machine without a GPU, a small trial: --model tiny --size 64 --steps 3."""
import argparse
import json
import platform
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from stasta_edu.backbone import tsm_resnet50, tsm_tiny
from stasta_edu.core import written_whole
from stasta_edu.short_actions import VERSION, ShortActions
from stasta_edu.stasta import stasta_resnet50, stasta_tiny
from stasta_edu.training import DataLoaders, Learner, Recipe
from stasta_edu.transforms import clip_transform

MODELS = {"resnet50": dict(TSM=tsm_resnet50, STASTA=stasta_resnet50), "tiny": dict(TSM=tsm_tiny, STASTA=stasta_tiny)}
PEAK = {"H200": 989, "H100": 989, "A100": 312, "4090": 165, "3090": 71}  # dense bfloat16, Tflop/s, from the makers' data sheets


class Clock:
    "The time of each step without waiting for data."
    def __init__(self): self.steps = []

    def watch(self, learn):
        step = learn.train_step
        def timed(video, label):
            self.wait()
            start = time.perf_counter()
            loss = step(video, label)
            self.wait()
            self.steps.append(time.perf_counter() - start)
            return loss
        learn.train_step = timed
        return learn

    def wait(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()


def gmacs(build, size):
    with torch.device("meta"), FlopCounterMode(display=False) as counter: build(num_classes=12)(torch.empty(1, 8, 3, size, size))
    return counter.get_total_flops() / 2e9


def run(build, options):
    data = {split: ShortActions(split, size=options.size, length=n, transform=clip_transform(options.size, split == "train", short_side=options.size))
            for split, n in (("train", 32 * min(options.steps, 60)), ("validation", 64))}
    recipe = Recipe.something_v1(epochs=10**6, mixed_precision=options.precision, channels_last=True, compile=options.compile, micro_batch=options.micro_batch)
    torch.manual_seed(0)
    dls = DataLoaders.from_datasets(data["train"], data["validation"], 32, num_workers=options.workers)
    clock, start = Clock(), time.perf_counter()
    if torch.cuda.is_available(): torch.cuda.reset_peak_memory_stats()
    learn = clock.watch(Learner(build(num_classes=12), dls, recipe)).fit(max_steps=options.steps)
    step, cost = statistics.median(clock.steps[len(clock.steps) // 10 :]), gmacs(build, options.size)
    peak = next((v for k, v in PEAK.items() if torch.cuda.is_available() and k in torch.cuda.get_device_name()), None)
    return dict(step_ms=1000 * step, clips_per_second=32 / step, clips_per_second_with_data=32 * len(clock.steps) / (time.perf_counter() - start), gmacs=cost,
                peak_memory_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
                utilisation=None if peak is None else 6e9 * cost * 32 / step / (peak * 1e12), losses=learn.losses, history=learn.history)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--model", choices=MODELS, default="resnet50")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--out", help="write the result here as JSON")
    options = parser.parse_args()
    found = {name: run(build, options) for name, build in MODELS[options.model].items()}
    ratio = found["STASTA"]["step_ms"] / found["TSM"]["step_ms"]
    for name, r in found.items():
        memory = "" if r["peak_memory_gib"] is None else f"   {r['peak_memory_gib']:.1f} GiB"
        busy = "" if r["utilisation"] is None else f"   {r['utilisation']:.0%} of the peak"
        print(f"{name:7s} {r['step_ms']:8.1f} ms a step   {r['clips_per_second']:7.1f} clips/s   with data {r['clips_per_second_with_data']:7.1f}{memory}{busy}   last loss {r['losses'][-1]:.3f}")
    print(f"step time of STASTA over TSM: {ratio:.2f}")
    if options.out:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
        record = dict(command=" ".join(["python benchmarks/train_gpu.py", *sys.argv[1:]]), seed=0, benchmark=VERSION, torch=torch.__version__, machine=machine, ratio=ratio, models=found)
        with written_whole(options.out) as part: part.write_text(json.dumps(record, indent=1) + "\n")
