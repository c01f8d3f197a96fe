"""Train stasta_tiny on ShortActions as the demo does, and score what explains it: `python benchmarks/explain.py`, about 6 minutes on 2 cores.

Writes benchmarks/results/explain/: the weights (float16, config.json and model.safetensors) that notebooks 15 and 16 question, and
results.json with the scores of every clip, the seed, versions, machine and command. All numbers belong to the weights as saved."""
import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from stasta_edu.cli import DemoPlan, machine, make_videos, train_and_test
from stasta_edu.core import written_whole
from stasta_edu.evaluation import evaluate
from stasta_edu.explain import (Evidence, ScoreTable, baseline_maps, cascade_similarity, displacement_evidence, grad_cam, ground_truth, insertion_deletion,
                                integrated_gradients, occlusion, own_evidence, rank_correlation, score_table, shuffle_similarity)
from stasta_edu.short_actions import VERSION, ShortActions
from stasta_edu.stasta import STASTA
from stasta_edu.transforms import denormalise

OUT = Path(__file__).parent / "results" / "explain"
CASCADE = ["fc", "layer4", "layer3", "stasta", "layer2", "layer1", "conv1"]
METHODS = {
    "Grad-CAM": lambda model, video, target=None, signed=False: grad_cam(model, video, target, signed=signed),
    "Grad-CAM at layer3": lambda model, video, target=None, signed=False: grad_cam(model, video, target, layer="layer3", signed=signed),
    "layer3, per frame": lambda model, video, target=None, signed=False: grad_cam(model, video, target, "layer3", "frame", signed),
    "integrated gradients": lambda model, video, target=None, signed=False: integrated_gradients(model, video, target, baseline="frozen", signed=signed),
    "occlusion": lambda model, video, target=None, signed=False: occlusion(model, video, target, baseline="frozen", signed=signed),
}


def chosen_clips(data, truth, per_family):
    "The first clips of each family in the test split: videos, their sampled frames, their truth."
    items = [i for family in sorted(set(truth.families)) for i in [k for k, (_, label) in enumerate(data.items) if truth.families[label] == family][:per_family]]
    at = [data.frame_indices(i).tolist() for i in items]
    clips = [truth.clip(int(data.items[i][0].stem)) for i in items]
    return torch.stack([data[i][0] for i in items]), at, clips


def all_evidence(model, videos, at):
    "For each clip, what all methods say; and the maps of the methods that give one for each pixel."
    ways = {name: f(model, videos) for name, f in METHODS.items()} | baseline_maps(denormalise(videos).float())
    own, found = model.maps(videos), []
    for i, t in enumerate(at):
        still = Evidence("nothing moves", "motion field", torch.zeros(len(t), 2, 1, 1), t)
        own_now = [e for e in own_evidence(own, t, i) if e.at == t]
        found.append([Evidence(name, "space-time map", m[i], t) for name, m in ways.items()] + own_now + [still])
    return found, ways


def slow_errors(model, videos, at, clips):
    "End-point error of the slow tempo, beside standing still."
    own = model.maps(videos)
    evidence = [displacement_evidence(own, t, i, "slow") for i, t in enumerate(at)]
    truths = [ground_truth(clip, e.at) for clip, e in zip(clips, evidence)]
    table = score_table([[e, Evidence("nothing moves, slow", "motion field", torch.zeros(len(e.at), 2, 1, 1), e.at)] for e in evidence], truths)
    return table.to_lists()


def faithfulness(model, videos, ways, n):
    "Insertion and deletion AUC of each pixel map, with two references, on every third clip."
    pick = slice(None, None, max(1, len(videos) // n))
    def of(maps): return {f"{what}, {kind}": getattr(found, f"{what}_auc").double() for kind in ("blurred", "frozen")
                          for found in [insertion_deletion(model, videos[pick], maps[pick], baseline=kind)] for what in ("insertion", "deletion")}
    return ScoreTable({name: of(maps) for name, maps in ways.items()}).to_lists()


def sanity(model, videos, n):
    "Cascading randomisation, shuffled frames, and what unrelated clips have in common."
    videos = videos[:: max(1, len(videos) // n)][:n]
    target, names = model(videos).argmax(1), ("Grad-CAM", "Grad-CAM at layer3", "integrated gradients")
    found = dict(layers=CASCADE, cascade={}, shuffled={}, unrelated={})
    for name in names:
        explain = METHODS[name]
        left = cascade_similarity(lambda m, v: explain(m, v, target, True), model, videos, CASCADE, seeds=(0, 1))
        found["cascade"][name] = left.abs().nanmean((1, 2)).tolist()
        found["shuffled"][name] = torch.stack([shuffle_similarity(lambda v: explain(model, v, target, True), videos, s) for s in (0, 1)]).abs().nanmean().item()
        maps = explain(model, videos, target, True)
        found["unrelated"][name] = float(torch.tensor([rank_correlation(a, b) for a, b in zip(maps, maps.roll(1, 0))]).abs().nanmean())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="stop the training after so many steps: a quick look")
    parser.add_argument("--per-family", type=int, default=12, help="clips of each family that are scored")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    start, plan = time.perf_counter(), DemoPlan(seed=options.seed, steps=options.steps, device="cpu").shrunk()
    with tempfile.TemporaryDirectory() as folder:
        data = make_videos(plan, Path(folder))
        learn, _ = train_and_test("STASTA", plan, data, progress=sys.stderr.isatty())
        options.out.mkdir(parents=True, exist_ok=True)
        learn.model.eval().cpu().half().save_pretrained(options.out)
        model = STASTA.from_pretrained(options.out).float().eval().requires_grad_(False)  # the weights as saved
        print(f"trained after {time.perf_counter() - start:.0f} s")
        truth = ShortActions("test", size=plan.size, seed=plan.seed, length=plan.n_test)
        score = evaluate(model, torch.utils.data.DataLoader(data["test"], 32), truth.classes)
        videos, at, clips = chosen_clips(data["test"], truth, options.per_family)
    evidence, ways = all_evidence(model, videos, at)
    table = score_table(evidence, [ground_truth(clip, t) for clip, t in zip(clips, at)])
    print(f"scored after {time.perf_counter() - start:.0f} s")
    record = dict(benchmark=VERSION, clips=dict(train=plan.n_train, test=plan.n_test), accuracy=score.top(1), n_accuracy=len(score.labels), chance=score.chance,
                  n_scored=len(videos), seed=options.seed, version=version("stasta_edu"), torch=torch.__version__, machine=machine(torch.device("cpu")),
                  command=" ".join(["python benchmarks/explain.py", *sys.argv[1:]]), scores=table.to_lists(), slow=slow_errors(model, videos, at, clips),
                  faithfulness=faithfulness(model, videos, ways, 12), sanity=sanity(model, videos, 8))
    record["seconds"] = time.perf_counter() - start
    (options.out / "model.safetensors").chmod(0o644)
    for stray in options.out.glob("README.md"): os.remove(stray)  # a model card that says nothing
    with written_whole(options.out / "results.json") as part: part.write_text(json.dumps(record))
    print(f"{score.top(1):.1%} top-1; {record['seconds']:.0f} s; {options.out}")
