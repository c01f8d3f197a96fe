"""Which model sees what on ShortActions, at the standard budget: python benchmarks/short_actions.py [--runs TSN TSM ...] [--seeds 0 1 2] [--family importance]

After each run results/short_actions.json is written anew, whole; a run that it holds already, of the same version and budget, is not repeated."""
import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

from stasta_edu.backbone import tsm_tiny, tsn_tiny
from stasta_edu.core import written_whole
from stasta_edu.evaluation import evaluate
from stasta_edu.short_actions import STANDARD_BUDGET, VERSION, ShortActions
from stasta_edu.stasta import stasta_tiny
from stasta_edu.training import DataLoaders, Learner, Recipe
from stasta_edu.transforms import clip_transform

RESULTS = Path(__file__).with_name("results") / "short_actions.json"
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5 % quantile, by the number of seeds
RUNS = {  # name -> (model of `num_classes`, which of the frames it is given)
    "TSN": (tsn_tiny, "all"),
    "TSM": (tsm_tiny, "all"),
    "TSN, one frame": (tsn_tiny, "one"),
    "TSM, shuffled frames": (tsm_tiny, "shuffled"),
    "STASTA": (stasta_tiny, "all"),
    "STASTA, neither module": (lambda num_classes: stasta_tiny(num_classes, modules=()), "all"),
    "STASTA, ST-AFS-FF alone": (lambda num_classes: stasta_tiny(num_classes, modules=("st_afs_ff",)), "all"),
    "STASTA, DM-TA alone": (lambda num_classes: stasta_tiny(num_classes, modules=("dm_ta",)), "all"),
}


class Seen(Dataset):
    "The frames that a model is given: all, in order; all, shuffled; or one of them, by chance."
    def __init__(self, clips, frames, seed): self.clips, self.frames, self.seed, self.classes = clips, frames, seed, clips.classes
    def __len__(self): return len(self.clips)

    def __getitem__(self, i):
        video, label = self.clips[i]
        order = torch.randperm(len(video), generator=torch.Generator().manual_seed(1_000_003 * self.seed + i))
        return {"all": video, "shuffled": video[order], "one": video[order[:1]]}[self.frames], label


def loaders(cache, frames, seed, family="all", split="test"):
    b, sets = STANDARD_BUDGET, []
    view = clip_transform(b["size"], short_side=b["size"])  # no augmentation: further clips cost less
    for name in ("train", split):
        clips = ShortActions(name, family, size=b["size"], num_frames=b["num_frames"], length=b["train" if name == "train" else "test"], transform=view)
        sets.append(Seen(clips.cached(cache), frames, seed))
    return DataLoaders.from_datasets(*sets, batch_size=b["batch_size"], seed=seed), clips


def run(name, seed, cache, family="all", split="test"):
    "Train by the standard budget and test once: accuracy over all clips, and in each family among its own classes."
    build, frames = RUNS[name]
    start = time.perf_counter()
    (dls, clips), b = loaders(cache, frames, seed, family, split), STANDARD_BUDGET
    torch.manual_seed(seed)
    model = build(num_classes=len(clips.classes))
    recipe = Recipe.short_actions(epochs=b["epochs"], batch_size=b["batch_size"], lr=b["lr"], weight_decay=b["weight_decay"], seed=seed)
    learner = Learner(model, dls, recipe, device="cpu", progress=False)
    learner.validate = lambda: dict(valid_loss=float("nan"), top1=float("nan"))  # the test set is looked at once, at the end
    learner.fit()
    within, right = {}, 0
    result = evaluate(model, dls.valid, clips.classes)
    logits, labels = result.logits, result.labels
    families = clips.families
    confusion = torch.zeros(len(families), len(families), dtype=torch.long).index_put_((labels, logits.argmax(1)), torch.ones_like(labels), accumulate=True)
    for f in dict.fromkeys(families):
        own = [k for k, other in enumerate(families) if other == f]
        rows = torch.tensor([label in own for label in labels.tolist()])
        guess = torch.tensor(own)[logits[rows][:, own].argmax(1)]
        within[f] = (guess == labels[rows]).float().mean().item()
    return dict(run=name, family=family, seed=seed, top1=(logits.argmax(1) == labels).float().mean().item(), within=within, n_test=len(labels), confusion=confusion.tolist(),
                train_loss=sum(learner.losses[-20:]) / 20, seconds=round(time.perf_counter() - start, 1))


def summary(runs):
    "Mean over seeds, and the 95 % interval of that mean (Student's t), overall and by family."
    table = {}
    for name in RUNS:
        own = [r for r in runs if r["run"] == name and r["family"] == "all"]
        if not own: continue
        columns = {"all": [r["top1"] for r in own]} | {f: [r["within"][f] for r in own] for f in own[0]["within"]}
        for column, values in columns.items():
            half = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) in STUDENT_T else None
            table.setdefault(name, {})[column] = dict(mean=statistics.mean(values), plus_minus=half, seeds=len(values))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--family", choices=("all", "tempo", "importance", "order"), default="all", help="clips of this family alone, as many as otherwise of all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="/tmp/short_actions", help="folder for the rendered frames")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="what is scored; on the validation split, where choices are made, nothing is saved")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.split == "validation":
        for seed in options.seeds:
            for name in options.runs: print(json.dumps(run(name, seed, options.cache, split="validation")), flush=True)
        raise SystemExit
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs = kept["runs"] if (kept.get("version"), kept.get("budget")) == (VERSION, STANDARD_BUDGET) else []
    for seed in options.seeds:
        for name in options.runs:
            if any((r["run"], r["seed"], r["family"]) == (name, seed, options.family) for r in runs): continue
            runs.append(run(name, seed, options.cache, options.family))
            record = dict(version=VERSION, command="python benchmarks/short_actions.py", budget=STANDARD_BUDGET, torch=torch.__version__, threads=options.threads,
                machine=f"{platform.system()} {platform.machine()}, {options.threads} CPU thread(s)", chance=dict(all=1 / 12, within=1 / 4), summary=summary(runs), runs=runs)
            with written_whole(RESULTS) as part: part.write_text(json.dumps(record, indent=1))
            print(json.dumps(runs[-1]), flush=True)
