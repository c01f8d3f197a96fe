"""Which model sees what on ShortActions, at the standard budget: python benchmarks/short_actions.py [--cache FOLDER]

The runs are some of those of ablation.yaml, and kept with them (results/ablation.jsonl): what is there is not run again. Of all their seeds
results/short_actions.json is written anew, whole: what notebook 02 shows, twelve floors before it is explained how runs are compared."""
import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from stasta_edu.ablation import read_plan, run_plan
from stasta_edu.core import written_whole
from stasta_edu.short_actions import STANDARD_BUDGET, VERSION

HERE = Path(__file__).parent
STUDENT_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # 97.5 % quantile, by the number of seeds
NAMES = {  # in the plan -> in notebook 02
    "TSN": "TSN", "TSM": "TSM", "TSN, one frame": "TSN, one frame", "TSM, shuffled frames": "TSM, shuffled frames", "both modules": "STASTA",
    "neither module": "STASTA, neither module", "ST-AFS-FF": "STASTA, ST-AFS-FF alone", "DM-TA": "STASTA, DM-TA alone",
}


def summary(runs):
    "Mean over seeds, and the 95 % interval of that mean (Student's t), overall and by family."
    table = {}
    for name in NAMES.values():
        own = [r for r in runs if r["run"] == name]
        columns = {"all": [r["top1"] for r in own]} | {f: [r["within"][f] for r in own] for f in own[0]["within"]}
        for column, values in columns.items():
            wide = STUDENT_T[len(values)] * statistics.stdev(values) / len(values) ** 0.5
            table.setdefault(name, {})[column] = dict(mean=statistics.mean(values), plus_minus=wide, seeds=len(values))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="/tmp/short_actions", help="folder for the rendered frames")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    plan = read_plan(HERE / "ablation.yaml")
    plan = replace(plan, variants=tuple(v for v in plan.variants if v.name in NAMES))
    kept = run_plan(plan, HERE / "results" / "ablation.jsonl", options.cache, options.workers)
    kept = sorted(kept, key=lambda r: (r["seed"], list(NAMES).index(r["variant"]["name"])))
    runs = [dict(run=NAMES[r["variant"]["name"]], family="all", **{k: r[k] for k in ("seed", "top1", "within", "n_test", "confusion", "train_loss", "seconds")}) for r in kept]
    origin = kept[0]["origin"]
    record = dict(version=VERSION, command="python benchmarks/short_actions.py", budget=STANDARD_BUDGET, torch=origin["torch"], threads=1, machine=origin["machine"],
                  chance=dict(all=1 / 12, within=1 / 4), summary=summary(runs), runs=runs)
    with written_whole(HERE / "results" / "short_actions.json") as part: part.write_text(json.dumps(record, indent=1))
    for name, row in record["summary"].items(): print(f"{name:26}" + "  ".join(f"{f} {v['mean']:.1%} ± {v['plus_minus']:.1%}" for f, v in row.items()))
