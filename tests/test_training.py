"What must not happen in training: a silent NaN, a half-written checkpoint, weights of another model, clips left out, a run that goes on differently."
import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from stasta_edu import training
from stasta_edu.backbone import tsn_tiny
from stasta_edu.evaluation import evaluate
from stasta_edu.stasta import STASTA, stasta_tiny
from stasta_edu.training import DataLoaders, EpochSampler, Learner, Recipe, Repeatable, parameter_groups, show_clips


class Tiny(nn.Module):
    "Two numbers of a clip, and a linear classifier on them."
    def __init__(self, width=2):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(2), nn.Linear(width, 3)

    def forward(self, video):  # (B, T, 3, H, W)
        x = torch.stack([video.mean((1, 2, 3, 4)), video[:, 0].mean((1, 2, 3))], 1)
        return self.fc(self.norm(x))


def loaders(n=22, batch_size=8):
    generator = torch.Generator().manual_seed(1)
    clips = TensorDataset(torch.randn(n, 2, 3, 4, 4, generator=generator), torch.arange(n) % 3)
    return DataLoaders.from_datasets(clips, clips, batch_size)


def learner(dls=None, **changes):
    torch.manual_seed(0)
    return Learner(Tiny(), dls or loaders(), Recipe.short_actions(**{"epochs": 2, "batch_size": 8, **changes}), device="cpu", progress=False)


def test_nan_stops_the_run_and_names_the_items():
    dls = loaders()
    dls.train.dataset.dataset.tensors[0][5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss is nan at step [123] \(epoch 1\); the batch's items: .*\b5\b.*; the frames of \[5\] are not finite"):
        learner(dls).fit()


def test_the_items_of_a_broken_batch_have_names():
    dls = loaders()
    dls.train.dataset.dataset.tensors[0][5] = float("inf")
    dls.train.dataset.dataset.items = [(f"clip-{i}.webm", i % 3) for i in range(22)]
    with pytest.raises(FloatingPointError, match=r"5 \(clip-5.webm\)"): learner(dls).fit()


def test_every_step_counts():
    assert len(learner().fit().losses) == 2 * 3            # 22 clips in batches of 8: the last batch too
    assert len(learner().fit(max_steps=4).losses) == 4
    assert learner().fit(max_steps=4).history[-1]["step"] == 4


def test_learning_rate_follows_the_recipe():
    recipe = Recipe(epochs=4, batch_size=8, milestones=(1, 2, 3), lr=0.1)
    learn = Learner(Tiny(), loaders(), recipe, device="cpu", progress=False)
    rates = []
    learn.callbacks.append(type("Rate", (), dict(after_epoch=lambda _, l: rates.append(l.optimizer.param_groups[0]["lr"])))())
    learn.fit()
    start = parameter_groups(Tiny(), recipe)[0]["lr"]
    assert learn.optimizer.param_groups[0]["name"] == "norm"
    assert rates == pytest.approx([start * 0.1 ** k for k in (1, 2, 3, 3)])


def test_groups_hold_each_parameter_once_and_spare_norms_and_biases():
    model = tsn_tiny(num_classes=5)
    groups = parameter_groups(model, Recipe(weight_decay=0.1))
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, model.parameters()))
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_weights_of_another_model_are_refused(tmp_path):
    path = learner().fit(epochs=1).save(tmp_path / "tiny.safetensors")
    other = learner()
    other.model.fc = nn.Linear(4, 3)
    with pytest.raises(RuntimeError, match="fc"):
        other.load(path)


def test_an_interrupted_save_keeps_the_old_weights(tmp_path, monkeypatch):
    path = learner().fit(epochs=1).save(tmp_path / "tiny.safetensors")
    before = path.read_bytes()

    def stop(model, filename):
        open(filename, "wb").write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr("stasta_edu.training.save_model", stop)
    with pytest.raises(KeyboardInterrupt):
        learner().fit(epochs=2).save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]


@pytest.mark.parametrize("batch_size", [1, 5, 22])
def test_evaluation_counts_each_clip_once(batch_size):
    model, clips = Tiny().eval(), loaders().valid.dataset
    result = evaluate(model, DataLoader(clips, batch_size))
    by_hand = sum(int(model(v[None]).argmax() == y) for v, y in clips) / len(clips)
    assert len(result.labels) == len(clips) and result.top(1) == pytest.approx(by_hand)
    assert result.confusion.sum() == len(clips) and result.confusion.trace() == round(by_hand * len(clips))


def test_validation_agrees_with_evaluation():
    learn = learner().fit()
    assert learn.validate()["top1"] == pytest.approx(evaluate(learn.model, learn.dls.valid).top(1))


@pytest.mark.parametrize("field, value", [("optimizer", "lion"), ("schedule", "cosine"), ("mixed_precision", "fp4")])
def test_unknown_choices_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be one of .*{value}"):
        Recipe(**{field: value})


@pytest.mark.parametrize("field, value", [("epochs", 0), ("batch_size", -1), ("micro_batch", 0), ("lr", -0.1), ("lr", float("nan")), ("weight_decay", -1e-4), ("momentum", 1.0),
                                          ("dropout", 1.0), ("label_smoothing", 1.5), ("clip_grad", -1.0)])
def test_numbers_that_make_no_sense_are_named(field, value):
    with pytest.raises(ValueError, match=f"Recipe: {field} must be at least .*, not {value}"): Recipe(**{field: value})


class Noisy(torch.utils.data.Dataset):
    "Clips with all kinds of chance in them."
    def __len__(self): return 22
    def __getitem__(self, i):
        noise = torch.randn(2, 3, 4, 4) + np.random.rand() + random.random()
        return i + 0.1 * noise, i % 3


class Dropping(Tiny):
    "Draws random numbers in training."
    def forward(self, video): return super().forward(F.dropout(video, 0.3, self.training))


def noisy_learner(run=None, workers=0, **changes):
    torch.manual_seed(0)
    dls = DataLoaders.from_datasets(Noisy(), loaders().valid.dataset, 4, num_workers=workers)
    return Learner(Dropping(), dls, Recipe.short_actions(**{"epochs": 3, "batch_size": 4, **changes}), run=run, device="cpu", progress=False)


def test_losses_do_not_depend_on_workers_or_what_was_drawn_before():
    first = noisy_learner().fit().losses
    torch.rand(7), np.random.rand(3), random.random()
    assert noisy_learner(workers=2).fit().losses == first
    assert noisy_learner(seed=1).fit().losses != first


def log(run): return [json.loads(line) for line in (run / "log.jsonl").open()]


@pytest.mark.parametrize("recipe", [dict(), dict(optimizer="sgd", schedule="steps", milestones=(1, 2)), dict(micro_batch=2, mixed_precision="bf16")])
@pytest.mark.parametrize("step", [1, 5, 6, 7, 17])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, step, recipe):
    whole = noisy_learner(tmp_path / "whole", **recipe).fit()

    class Stop:
        def after_step(self, learn):
            if learn.step == step: raise SystemError("stop")
    broken = noisy_learner(tmp_path / "broken", **recipe)
    broken.run.every, broken.callbacks = 2, [Stop(), *broken.callbacks]
    with pytest.raises(SystemError): broken.fit()
    again = noisy_learner(tmp_path / "broken", **recipe).fit(resume=True)
    assert again.losses == whole.losses
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    assert [{k: v for k, v in e.items() if k != "clips_per_second"} for e in again.history] == [
        {k: v for k, v in e.items() if k != "clips_per_second"} for e in whole.history]
    assert [line["loss"] for line in log(tmp_path / "broken")] == whole.losses
    assert [line["step"] for line in log(tmp_path / "broken")] == list(range(1, 19))
    assert len(list((tmp_path / "broken" / "state").iterdir())) == 2


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
from test_training import noisy_learner
whole_save = torch.save
def save(state, path):
    if state["step"] == {cut}:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    whole_save(state, path)
torch.save = save
learn = noisy_learner({run!r}, epochs=40)
learn.run.every = 1
class Slow:
    def after_step(self, learn): print(learn.step, flush=True); time.sleep({sleep})
learn.callbacks.append(Slow())
learn.fit(resume=True)
print("done", flush=True)
"""


def start(run, sleep=0.0, cut=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = SCRIPT.format(tests=os.path.dirname(__file__), run=str(run), sleep=sleep, cut=cut)
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_step(process, step):
    for line in process.stdout:
        if line.strip() == "done" or int(line) >= step: return


def test_killed_at_any_moment_it_goes_on_with_the_same_losses(tmp_path):
    assert start(tmp_path / "whole").wait(120) == 0  # with as many threads as the others: sums in another order are other sums
    whole, moments = [line["loss"] for line in log(tmp_path / "whole")], random.Random(0)
    for step, cut in ((3, None), (60, 60), (170, None)):  # between steps, in the middle of writing a state, wherever it happens to be
        process = start(tmp_path / "run", cut=cut)
        until_step(process, step)
        time.sleep(moments.random() * 0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(tmp_path / "run")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.endswith("done\n"), err
    assert [line["loss"] for line in log(tmp_path / "run")] == whole
    assert len(whole) == 240 and not [p for p in (tmp_path / "run").rglob("*.part*")]


def test_ctrl_c_saves_and_stops(tmp_path):
    process = start(tmp_path / "run", sleep=0.05)
    until_step(process, 8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = len(log(tmp_path / "run"))
    assert 8 <= steps < 240
    state = torch.load(sorted((tmp_path / "run" / "state").iterdir())[-1], weights_only=True)
    assert state["step"] == steps


def test_half_written_lines_and_damaged_states_do_not_matter(tmp_path):
    whole = noisy_learner(tmp_path / "whole").fit()
    learn = noisy_learner(tmp_path / "run")
    learn.run.every = 4
    learn.callbacks.insert(0, type("Stop", (), dict(after_step=lambda _, l: setattr(l, "stopping", l.step == 10)))())
    learn.fit()
    with (tmp_path / "run" / "log.jsonl").open("a") as f: f.write('{"step": 11, "lo')
    sorted((tmp_path / "run" / "state").iterdir())[-1].write_bytes(b"damaged")
    assert noisy_learner(tmp_path / "run").fit(resume=True).losses == whole.losses
    assert [line["loss"] for line in log(tmp_path / "run")] == whole.losses


def test_states_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, ("touch " + str(tmp_path / "ran"),)
    learn = noisy_learner(tmp_path / "run").fit()
    for path in learn.run.states: torch.save(dict(step=Evil()), path)
    with pytest.raises(ValueError, match="no training state can be read"): noisy_learner(tmp_path / "run").fit(resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_run_is_not_written_over_and_not_mixed(tmp_path):
    noisy_learner(tmp_path / "run").fit()
    with pytest.raises(FileExistsError, match="resume=True"): noisy_learner(tmp_path / "run").fit()
    with pytest.raises(ValueError, match="weight_decay was 0.05 and is 0.1"): noisy_learner(tmp_path / "run", weight_decay=0.1).fit(resume=True)


def test_best_weights_and_records(tmp_path):
    from safetensors.torch import load_file
    learn = noisy_learner(tmp_path / "run").fit()
    best = max(range(3), key=lambda e: (learn.history[e]["top1"], -e))
    assert json.loads((tmp_path / "run/best/record.json").read_text())["epoch"] == best + 1
    assert set(load_file(tmp_path / "run/best/model.safetensors")) == set(learn.model.state_dict())
    assert json.loads((tmp_path / "run/recipe.json").read_text())["batch_size"] == 4
    assert json.loads((tmp_path / "run/environment.json").read_text())["versions"]["torch"] == version("torch")
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_each_epoch_has_each_item_once_in_another_order():
    sampler = EpochSampler(23, 5, seed=3)
    orders = [[i for batch in sampler.batches(e) for i in batch] for e in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders) and orders[0] != orders[1] != orders[2]
    assert len(sampler) == len(list(sampler)) == 5


def test_draws_of_an_item_leave_no_trace():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    Repeatable(Noisy())[0, 3]
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_says_what_to_lower(monkeypatch, error):
    forward = Tiny.forward
    def too_big(self, video):
        if self.training == in_training: raise error
        return forward(self, video)
    monkeypatch.setattr(Tiny, "forward", too_big)
    in_training = True
    with pytest.raises(MemoryError, match="8 clips at once; try micro_batch=4.*checkpoint_activations=True"): learner().fit()
    in_training = False
    with pytest.raises(MemoryError, match="in validation with 8 clips at once; lower batch_size"): learner().fit()


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def broken(self, video): raise RuntimeError("size mismatch")
    monkeypatch.setattr(Tiny, "forward", broken)
    with pytest.raises(RuntimeError, match="size mismatch"): learner().fit()


def test_several_labels_a_clip():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(22, 3, generator=generator) > 0.5).long()
    labels[:, 2] = 0  # a class without positives: left out of the mean
    clips = torch.utils.data.TensorDataset(torch.randn(22, 2, 3, 4, 4, generator=generator), labels)
    learn = learner(DataLoaders.from_datasets(clips, clips, 8), loss="binary_cross_entropy").fit()
    assert 0 < learn.history[-1]["mean_ap"] <= 1
    with torch.no_grad(): expected = F.binary_cross_entropy_with_logits(learn.model.eval()(clips.tensors[0]), labels.float())
    assert learn.history[-1]["valid_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_groups_are_tsm_s():
    groups = {g["name"]: g for g in parameter_groups(tsn_tiny(num_classes=5), Recipe(lr=0.01, weight_decay=5e-4))}
    expected = {"first conv weight": (1, 1), "weight": (1, 1), "norm": (1, 0), "classifier weight": (5, 1), "classifier bias": (10, 0)}
    assert {name: (round(g["lr"] / 0.01, 6), round(g["weight_decay"] / 5e-4, 6)) for name, g in groups.items()} == expected


def test_compile_and_checkpointing_change_nothing(monkeypatch):
    plain = learner(epochs=1).fit().losses
    assert learner(epochs=1, checkpoint_activations=True).fit().losses == plain
    compiled = torch.compile  # the default backend wants a C++ compiler, which a test machine need not have
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="aot_eager"))
    assert learner(epochs=1, compile=True).fit(max_steps=1).losses == pytest.approx(plain[:1], rel=1e-5)


def test_training_in_a_thread_leaves_signals_alone():
    learn, errors = learner(epochs=1), []
    def run():
        try: learn.fit()
        except Exception as error: errors.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors and len(learn.losses) == 3


def stasta_learner(run=None, **changes):
    generator = torch.Generator().manual_seed(1)
    clips = TensorDataset(torch.randn(8, 4, 3, 32, 32, generator=generator), torch.arange(8) % 3)
    torch.manual_seed(0)
    recipe = Recipe.short_actions(**{"epochs": 1, "batch_size": 4, **changes})
    return Learner(stasta_tiny(num_classes=3, num_frames=4), DataLoaders.from_datasets(clips, clips, 4), recipe, run=run, device="cpu", progress=False)


def test_checkpointed_layers_run_twice_with_the_same_result(monkeypatch):
    "Of a real model: the layers are computed again on the way back, and weights, losses and batch norm's memory do not change."
    runs = []
    def count(learn):
        forward = type(learn.model.layer1).forward
        def counted(self, *args):
            runs.append(torch.is_grad_enabled() and self.training)
            return forward(self, *args)
        with monkeypatch.context() as patch:
            patch.setattr(type(learn.model.layer1), "forward", counted)
            runs.clear()
            learn.fit()
        return sum(runs)
    plain, twice = stasta_learner(), stasta_learner(checkpoint_activations=True)
    Learner(twice.model, twice.dls, twice.recipe, device="cpu", progress=False)  # as lr_find does: not four times
    once = count(plain)
    assert count(twice) == 2 * once
    assert plain.losses == twice.losses
    assert all(torch.equal(v, twice.model.state_dict()[k]) for k, v in plain.model.state_dict().items())


def test_a_copy_of_a_checkpointed_model_is_a_copy():
    model, video = stasta_learner(checkpoint_activations=True).model.eval(), torch.randn(1, 4, 3, 32, 32)
    other = copy.deepcopy(model)
    assert torch.equal(other(video), model(video))
    for p in other.layer1.parameters(): torch.nn.init.zeros_(p)
    assert not torch.equal(other(video), model(video))


@pytest.mark.parametrize("changes", [dict(compile=True), dict(mixed_precision="bf16"), dict(checkpoint_activations=True)])
def test_best_weights_are_those_of_the_model_however_it_was_computed(tmp_path, monkeypatch, changes):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="aot_eager"))
    learn = stasta_learner(tmp_path / "run", **changes)
    model = learn.model
    learn.fit()
    assert learn.model is model  # not something wrapped around it
    again, video = STASTA.from_pretrained(tmp_path / "run" / "best").eval(), learn.dls.valid.dataset.tensors[0]
    assert torch.equal(again(video), model.eval()(video))


def board(run):
    "All numbers that TensorBoard would show, by step."
    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    return {tag: {e.step: e.value for e in shown.Scalars(tag)} for tag in shown.Tags()["scalars"]}


def test_tensorboard_shows_the_log_also_after_an_interruption(tmp_path):
    broken = noisy_learner(tmp_path / "run")
    class Stop:
        def after_step(self, learn):
            if learn.step == 8: raise SystemError("stop")
    broken.callbacks = [*broken.callbacks, Stop()]
    with pytest.raises(SystemError): broken.fit()
    learn = noisy_learner(tmp_path / "run").fit(resume=True)
    shown = board(tmp_path / "run")
    assert list(shown["loss/training"].values()) == pytest.approx(learn.losses, rel=1e-6) and list(shown["loss/training"]) == list(range(1, 19))
    assert list(shown["epoch/top1"].values()) == pytest.approx([e["top1"] for e in learn.history])


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    whole = noisy_learner(tmp_path / "whole").fit()
    save, learn = torch.save, noisy_learner(tmp_path / "run")
    def full(state, path):
        if state["step"] > 12: raise OSError(28, "No space left on device")
        save(state, path)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"): learn.fit()
    monkeypatch.setattr(torch, "save", save)
    assert [p.name for p in learn.run.states] == ["step-00000006.pt", "step-00000012.pt"] and not list((tmp_path / "run").rglob("*.part*"))
    assert noisy_learner(tmp_path / "run").fit(resume=True).losses == whole.losses


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tmp_path):
    first = noisy_learner(tmp_path / "run").fit()
    lines = (tmp_path / "run" / "log.jsonl").read_bytes()
    again = noisy_learner(tmp_path / "run").fit(resume=True)
    assert again.losses == first.losses and again.history == first.history and (tmp_path / "run" / "log.jsonl").read_bytes() == lines
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in first.model.state_dict().items())


def test_the_search_for_a_rate_leaves_no_trace_in_the_run_that_follows():
    learn = noisy_learner()
    learn.lr_find(steps=6)
    assert learn.fit().losses == noisy_learner().fit().losses


@pytest.mark.parametrize("several", [False, True])
def test_results_are_shown_with_truth_and_answer(monkeypatch, several):
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(22, 3, generator=generator) > 0.5).long() if several else torch.arange(22) % 3
    clips = TensorDataset(torch.randn(22, 2, 3, 16, 16, generator=generator), labels)
    clips.classes = ["opening", "closing", "<b>ä</b>"]
    learn = learner(DataLoaders.from_datasets(clips, clips, 8), loss="binary_cross_entropy" if several else "cross_entropy")
    learn.model.train()
    said = []
    monkeypatch.setattr(training, "show_clips", lambda videos, captions, height: said.extend(captions) or show_clips(videos, captions, height))
    picture = learn.show_results(3, height=32)
    assert picture.height == 3 * (32 + 16 + 8) and learn.model.training
    for item, caption in zip((0, 7, 14), said):
        true = [clips.classes[k] for k in (labels[item].nonzero().flatten().tolist() if several else [labels[item]])]
        assert caption.startswith(f"clip {item}. Truth: {'; '.join(true) or 'nothing'}. Answer: ")
    said.clear()
    learn.show_results(100)
    assert len(said) == 22


def test_validation_agrees_with_evaluation_for_several_labels():
    generator = torch.Generator().manual_seed(0)
    clips = TensorDataset(torch.randn(22, 2, 3, 4, 4, generator=generator), (torch.rand(22, 3, generator=generator) > 0.6).long())
    learn = learner(DataLoaders.from_datasets(clips, clips, 8), loss="binary_cross_entropy").fit()
    assert learn.validate()["mean_ap"] == pytest.approx(evaluate(learn.model, learn.dls.valid).mean_ap(), abs=1e-6)
