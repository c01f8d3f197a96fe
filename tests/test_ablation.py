"What notebook 14 does not show: a plan killed in the middle, runs that fail, two workers and one, statistics against loops."
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from stasta_edu import ablation
from stasta_edu.ablation import (Plan, Seen, Variant, bootstrap_interval, build, compare, comparison_rows, effect_size, load_runs, read_plan, run_key, run_plan,
                                 sign_flip_test, within_families)
from stasta_edu.baselines import list_models
from stasta_edu.evaluation import Evaluation
from stasta_edu.short_actions import STANDARD_BUDGET

SMALL = dict(STANDARD_BUDGET, train=16, test=12, size=32, num_frames=4, epochs=1, batch_size=8)
PLAN = """
seeds: [0, 1]
budget: {train: 16, test: 12, size: 32, num_frames: 4, epochs: 1, batch_size: 8}
variants:
  TSM: {model: tsm_tiny}
  neither: {kw: {modules: []}}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return tmp_path_factory.mktemp("cache")


def numbers(runs): return sorted((r["key"], r["train_loss"], r["top1"], json.dumps(r["confusion"])) for r in runs)


def test_two_workers_or_one_killed_or_not_the_same_numbers(tmp_path, cache):
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan = read_plan(tmp_path / "plan.yaml")
    whole = run_plan(plan, tmp_path / "whole.jsonl", cache, workers=2, say=lambda _: None)
    assert len(whole) == 4 and len({r["key"] for r in whole}) == 4
    code = f"from stasta_edu.ablation import *\nif __name__ == '__main__': run_plan(read_plan({str(tmp_path / 'plan.yaml')!r}), {str(tmp_path / 'killed.jsonl')!r}, {str(cache)!r}, workers=1)"
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "go.py"], start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not load_runs(tmp_path / "killed.jsonl") and time.monotonic() < deadline: time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    n = len(load_runs(tmp_path / "killed.jsonl"))
    assert 1 <= n <= 4
    said = []
    resumed = run_plan(plan, tmp_path / "killed.jsonl", cache, workers=1, say=said.append)
    assert said[0].startswith(f"4 runs, {n} of them done") and numbers(resumed) == numbers(whole)


def test_workers_leave_when_their_parent_is_killed(tmp_path, cache):
    (tmp_path / "plan.yaml").write_text(PLAN.replace("epochs: 1", "epochs: 500"))
    code = f"from stasta_edu.ablation import *\nif __name__ == '__main__': run_plan(read_plan({str(tmp_path / 'plan.yaml')!r}), {str(tmp_path / 'r.jsonl')!r}, {str(cache)!r}, workers=2)"
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "go.py"], stdout=subprocess.DEVNULL, start_new_session=True)

    def workers(): return [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]  # and not multiprocessing's tracker

    wait_for(lambda: len(workers()) == 2)
    time.sleep(5)  # past their imports
    kept = workers()
    process.kill()
    process.wait()
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in kept))


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_that_fails_loses_nothing(tmp_path, cache):
    good, bad = Variant("TSM", "tsm_tiny"), Variant("needs more frames", "stasta_tiny", kw=dict(alpha=3))
    with pytest.raises(ValueError, match="a multiple of 3"):
        run_plan(Plan((good, bad), (0,), SMALL), tmp_path / "runs.jsonl", cache, workers=1, say=lambda _: None)
    assert [r["variant"]["name"] for r in load_runs(tmp_path / "runs.jsonl")] == ["TSM"]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"key": 1}\n{"key": \n{"key": 3}\n')
    with pytest.raises(ValueError, match="runs.jsonl: line 2"): load_runs(tmp_path / "runs.jsonl")


def test_the_key_knows_what_a_run_depends_on_and_nothing_else():
    plan, v = Plan((), budget=SMALL), Variant("a", kw=dict(radius=2))
    key = run_key(v, 0, plan)
    assert key == run_key(Variant("another name", kw=dict(radius=2), study="s", seeds=(0, 5)), 0, plan)
    others = [run_key(v, 1, plan), run_key(Variant("a", kw=dict(radius=3)), 0, plan), run_key(Variant("a", "tsm_tiny"), 0, plan), run_key(v, 0, Plan((), budget=dict(SMALL, lr=1.0))),
              run_key(v, 0, Plan((), budget=SMALL, split="validation")), run_key(Variant("a", kw=dict(radius=2), sees="one"), 0, plan)]
    assert len({key, *others}) == 7


@pytest.mark.parametrize("name", list_models("_tiny"))
def test_every_tiny_model_can_stand_in_a_plan(name):
    model = build(Variant(name, name), 12, 8)
    assert model(torch.rand(2, 8, 3, 64, 64)).shape == (2, 12)


@pytest.mark.parametrize("name", ("r3d_tiny", "r2plus1d_tiny", "slow_tiny"))
def test_the_block_goes_into_a_network_in_3d_and_learns(name):
    plain, plugged = (build(Variant(name, name, block_after=after, kw=kw), 12, 8) for after, kw in ((None, {}), ("layer1", dict(radius=2))))
    plugged(torch.rand(2, 8, 3, 64, 64)).sum().backward()
    grads = [p.grad for n, p in plugged.named_parameters() if ".stasta." in n]
    assert len(grads) > 10 and all(g is not None and g.isfinite().all() for g in grads) and any(g.any() for g in grads)
    assert not any(".stasta." in n for n, _ in plain.named_parameters())


def test_what_a_model_sees(cache):
    from stasta_edu.short_actions import ShortActions
    clips = ShortActions("test", size=32, num_frames=8, length=4)
    video, label = clips[2]
    for sees, frames in (("all", 8), ("shuffled", 8), ("one", 1)):
        seen, got = Seen(clips, sees, seed=3)[2]
        assert len(seen) == frames and got == label and torch.equal(seen, Seen(clips, sees, seed=3)[2][0])
        assert all(any(torch.equal(f, g) for g in video) for f in seen) and torch.equal(seen, video) == (sees == "all")


def test_sign_flips_against_a_loop():
    rng = random.Random(0)
    for n in (1, 3, 6, 9):
        d = [rng.gauss(0.3, 1) for _ in range(n)]
        hits = [abs(sum(s * x for s, x in zip(signs, d))) >= abs(sum(d)) - 1e-12 for signs in itertools.product((1, -1), repeat=n)]
        assert sign_flip_test(d) == pytest.approx(sum(hits) / 2**n) and sign_flip_test([-x for x in d]) == sign_flip_test(d)
    for wrong in ([], [0.0] * 21):
        with pytest.raises(ValueError, match="1 to 20"): sign_flip_test(wrong)


def test_effect_and_interval_against_plain_formulas():
    d = [0.02, -0.01, 0.05, 0.03, 0.0, 0.04]
    assert effect_size(d) == pytest.approx(statistics.mean(d) / statistics.stdev(d))
    assert np.isnan(effect_size([1.0])) and effect_size([2.0, 2.0]) == np.inf
    rng = np.random.default_rng(0)
    means = sorted(statistics.mean(d[k] for k in draw) for draw in rng.integers(6, size=(10_000, 6)))
    assert bootstrap_interval(d) == pytest.approx(np.quantile(means, [0.025, 0.975])) and all(np.isnan(bootstrap_interval([1.0])))


def test_within_a_family_only_its_classes_count():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 1, 5, 3], [9, 0, 3, 4]])
    found = within_families(Evaluation(logits, torch.tensor([1, 2, 3]), list("abcd")), ["x", "x", "y", "y"])
    assert found == {"x": 0.0, "y": 1.0}


def test_names_are_escaped_and_missing_ones_named():
    runs = [dict(variant=dict(name=n), seed=s, top1=0.5 + 0.1 * s, within={}) for n in ("<b>", "base") for s in (0, 1)]
    page = comparison_rows(runs, ["base", "<b>"], "base", families=("all",))
    assert "&lt;b&gt;" in page and "<b>" not in page
    with pytest.raises(ValueError, match="names are <b>, base"): compare(runs, "nobody", "base")


def test_the_plans_of_the_project_are_sound():
    from pathlib import Path
    folder = Path(__file__).parents[1] / "benchmarks"
    for name in ("ablation", "beyond", "learning_rate"):
        plan = read_plan(folder / f"{name}.yaml")
        keys = [run_key(v, s, plan) for v, s in plan.runs]
        assert len(set(keys)) == len(keys) and len({v.name for v in plan.variants}) == len(plan.variants)
        kept = {r["key"]: r for r in load_runs(folder / "results" / f"{name}.jsonl")}
        assert kept and all(key in keys for key in kept), "saved runs that no plan asks for: what they were trained with has changed"
