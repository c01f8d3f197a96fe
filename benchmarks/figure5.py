"""Figure 5 of the paper, remade and scored: TRN, I3D, SlowFast and STASTA learn the stories of ShortActions, and Grad-CAM of each is held against the truth.

`python benchmarks/figure5.py`, half an hour on one core beside other work. Writes benchmarks/results/figure5/: results.json with the mean average precision of each model,
and for 200 stories the pointing game and the energy inside the mask of the actor that the explained class is about; and story.safetensors with the maps of one of
these stories, for each of its classes, which notebook 16 shows."""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import adaptive_avg_pool2d

from stasta_edu.ablation import origin
from stasta_edu.baselines import get_model
from stasta_edu.core import written_whole
from stasta_edu.evaluation import evaluate
from stasta_edu.explain import Evidence, baseline_maps, grad_cam, ground_truth, score_table
from stasta_edu.short_actions import VERBS, ShortActions
from stasta_edu.training import DataLoaders, Learner, Recipe
from stasta_edu.transforms import clip_transform, denormalise

OUT = Path(__file__).with_name("results") / "figure5"
MODELS = {"MultiScale TRN": "trn_multiscale_tiny", "I3D": "i3d_tiny", "SlowFast": "slowfast_tiny", "STASTA": "stasta_tiny"}
BUDGET = dict(train=960, test=200, size=64, num_frames=16, epochs=12, batch_size=32, lr=4e-3)  # the same for all


def stories(split, cache):
    "Stories as the models see them; rendered once."
    n = BUDGET["train" if split == "train" else "test"]
    data = ShortActions(split, "story", BUDGET["size"], BUDGET["num_frames"], length=n, transform=clip_transform(BUDGET["size"], short_side=BUDGET["size"]))
    return data.cached(cache)


def trained(name, dls, classes, seed):
    "One model, from scratch, with a sigmoid for each class."
    torch.manual_seed(seed)
    model = get_model(name, len(classes), BUDGET["num_frames"])
    recipe = Recipe.short_actions(loss="binary_cross_entropy", epochs=BUDGET["epochs"], batch_size=BUDGET["batch_size"], lr=BUDGET["lr"], seed=seed)
    learn = Learner(model, dls, recipe, device="cpu", progress=False)
    learn.validate = lambda: dict(valid_loss=float("nan"), mean_ap=float("nan"))
    learn.fit()
    return model.eval()


def question(clip, i):
    "Which of a story's classes is explained: they take turns."
    return clip.label[i % len(clip.label)]


def about(clip, label, at):
    "The truth about one class: its actor, while it does what the class says."
    return ground_truth(replace(clip, actions=[replace(a, decisive=a.decisive and a.verb == VERBS[label]) for a in clip.actions]), at)


def heat(model, video, label):
    "Grad-CAM of one clip; of a network with two pathways the mean over them."
    found = grad_cam(model, video, label)
    return (sum(found.values()) / len(found) if isinstance(found, dict) else found)[0]


def one_story(models, data, path):
    "Grad-CAM of all models for all classes of the first story about a fridge, as the paper's is: saved, and what else there is to know about it."
    i = next(i for i in range(len(data)) if any("fridge" in data.classes[k] for k in data.source.clip(i).label))
    clip, video = data.source.clip(i), data[i][0][None]
    keep = {f"{name}|{label}": adaptive_avg_pool2d(heat(model, video, label), 16).half() for name, model in models.items() for label in clip.label}
    with written_whole(path) as part: save_file(keep, part)
    path.chmod(0o644)
    with torch.no_grad(): answers = {name: model(video)[0].sigmoid().tolist() for name, model in models.items()}
    return dict(index=i, labels=list(clip.label), at=data.source.frame_indices(i, len(clip.frames)), probability=answers)


def scored(models, data):
    "Every method on every story."
    evidence, truths = [], []
    for i in range(len(data)):
        clip, video = data.source.clip(i), data[i][0][None]  # (1, T, 3, H, W)
        at, label = data.source.frame_indices(i, len(clip.frames)), question(clip, i)
        maps = {name: heat(model, video, label) for name, model in models.items()} | {name: m[0] for name, m in baseline_maps(denormalise(video).float()).items()}
        evidence.append([Evidence(name, "space-time map", m, at) for name, m in maps.items()])
        truths.append(about(clip, label, at))
    return score_table(evidence, truths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default="/tmp/short_actions", help="folder for the rendered frames")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, (train, test) = time.perf_counter(), (stories(split, options.cache) for split in ("train", "test"))
    dls, models, precision = DataLoaders.from_datasets(train, test, BUDGET["batch_size"], options.seed), {}, {}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, built in MODELS.items():
        models[name] = trained(built, dls, test.classes, options.seed)
        result = evaluate(models[name], dls.valid, test.classes)
        precision[name] = dict(mean_ap=result.mean_ap(), interval=result.interval(), by_random_order=result.chance)
        print(f"{name}: {result.headline()}; {time.perf_counter() - start:.0f} s", flush=True)
    record = dict(models=MODELS, budget=BUDGET, seed=options.seed, command="python benchmarks/figure5.py", origin=origin(), precision=precision, scores=scored(models, test).to_lists(),
                  story=one_story(models, test, options.out / "story.safetensors"))
    with written_whole(options.out / "results.json") as part: part.write_text(json.dumps(dict(record, seconds=round(time.perf_counter() - start))))
    print(f"{len(test)} stories scored; {time.perf_counter() - start:.0f} s")
