"Scores that are counted once, kept, fused and read back: nothing executed, nothing mixed up, nothing of the paper's among what was measured."
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.functional.classification import multilabel_average_precision

from stasta_edu import evaluation
from stasta_edu.backbone import tsm_tiny
from stasta_edu.datasets import Charades, ClipDataset, SomethingV1, SomethingV2
from stasta_edu.evaluation import (PROTOCOLS, TABLE_1, TABLE_2, Evaluation, Protocol, comparison_table, ensemble, evaluate, fuse_views, load_scores, paper_figure1,
                                   paper_table)
from stasta_edu.short_actions import ShortActions
from stasta_edu.video import VideoReadError

SAMPLES = Path(__file__).parents[1] / "data_samples"


def scores(n=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Evaluation(torch.randn(n, classes, generator=generator), torch.arange(n) % classes, [f"class {i}" for i in range(classes)])


def several(n=40, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, classes, generator=generator) < 0.3).long()
    labels[:, 2] = 0
    return Evaluation(torch.randn(n, classes, generator=generator), labels, [f"class {i}" for i in range(classes)])


def test_a_pickle_in_a_scores_file_is_not_executed(tmp_path):
    np.savez(tmp_path / "bad.npz", logits=np.array([{"a": 1}], dtype=object), labels=np.zeros(1), classes=np.array(["a"]))
    with pytest.raises(ValueError, match="allow_pickle"): load_scores(tmp_path / "bad.npz")


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz: holds no scores.*classes, labels, logits missing"): load_scores(tmp_path / "other.npz")


def test_a_failed_write_leaves_the_old_scores(tmp_path, monkeypatch):
    path = scores().save(tmp_path / "s.npz")
    before = path.read_bytes()
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError): scores(seed=1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("e", [scores(), several()])
def test_scores_survive_a_file_with_names(tmp_path, e):
    e.clips = [f"folder/{i}ä.webm" for i in range(len(e.labels))]
    back = load_scores(e.save(tmp_path / "s.npz"))
    assert torch.equal(back.logits, e.logits) and torch.equal(back.labels, e.labels) and (back.classes, back.clips) == (e.classes, e.clips)
    assert ensemble(e, back).headline() == e.headline()


@pytest.mark.parametrize("other", [scores(8), Evaluation(scores().logits, scores().labels.flip(0), scores().classes)])
def test_an_ensemble_of_other_clips_is_refused(other):
    with pytest.raises(ValueError, match="other clips"): ensemble(scores(), other)


def test_an_ensemble_looks_at_names_where_labels_agree():
    one, other = (Evaluation(torch.randn(2, 2), torch.zeros(2), ["a", "b"], clips) for clips in (["1", "2"], ["2", "1"]))
    with pytest.raises(ValueError, match="other clips"): ensemble(one, other)
    assert ensemble(one, Evaluation(one.logits, one.labels, one.classes)).clips == ["1", "2"]  # names are not demanded


@pytest.mark.parametrize("logits, labels, complaint", [
    (torch.zeros(3, 2), torch.zeros(3), r"scores must be \(clips, 4 classes\)"),
    (torch.zeros(0, 4), torch.zeros(0), "at least one clip"),
    (torch.zeros(3, 4), torch.zeros(2), r"labels must be \(3,\) or \(3, 4\)"),
    (torch.zeros(3, 4), torch.tensor([0, 4, 1]), "labels go from 0 to 4, but must lie in 0 to 3"),
    (torch.zeros(3, 4), torch.full((3, 4), 2), "0 to 1"),
    (torch.zeros(3, 4).index_fill(0, torch.tensor([1]), float("inf")), torch.zeros(3), "1 of 3 clips have scores that are not finite, first clip 1")])
def test_scores_that_cannot_be_right_are_refused(logits, labels, complaint):
    with pytest.raises(ValueError, match=complaint): Evaluation(logits, labels, list("abcd"))


def test_per_class_accuracy_adds_up_to_top1():
    e = scores(50)
    share = e.labels.bincount() / 50
    assert sum(share[i].item() * e.per_class()[name] for i, name in enumerate(e.classes)) == pytest.approx(e.top(1), abs=1e-6)


def test_the_softmax_of_very_sure_models_stays_finite_and_right():
    logits = torch.tensor([[400.0, 0, -400], [0, 300.0, -400]])
    fused = fuse_views(logits, "softmax")
    assert fused.isfinite().all() and torch.allclose(fused.double().exp(), logits.double().softmax(1).mean(0))


# several labels a clip

def test_mean_ap_is_torchmetrics_over_classes_with_positives():
    e = several()
    keep = [0, 1, 3, 4, 5]
    every = multilabel_average_precision(e.logits[:, keep].sigmoid(), e.labels[:, keep], 5, average=None)
    assert e.left_out == ["class 2"] and "class 2" not in e.per_class()
    assert e.mean_ap() == pytest.approx(every.mean().item(), abs=1e-6)
    assert e.summary()["left_out"] == ["class 2"] and "5 of 6 classes (1 without positives left out)" in e.headline()


def test_mean_ap_of_a_perfect_order_is_one_and_of_chance_is_prevalence():
    e = several(4000)
    assert Evaluation(e.labels * 2.0, e.labels, e.classes).mean_ap() == pytest.approx(1)
    assert e.mean_ap() == pytest.approx(e.chance, abs=0.02)


def test_the_interval_of_mean_ap_is_that_of_clips_drawn_again():
    e, rng = several(30), np.random.default_rng(0)
    found = []
    for _ in range(200):
        i = rng.integers(30, size=30)
        found.append(Evaluation(e.logits[i], e.labels[i], e.classes).mean_ap())
    expected = np.quantile(found, [0.025, 0.975]) + e.mean_ap() - np.mean(found)
    assert e.interval(resamples=200) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [lambda rng: draw_several(rng), lambda rng: draw_one(rng)])
def test_intervals_hold_what_they_promise(make):
    "Of 150 test sets from the same source, about 95 % have an interval that covers the mean over all of them. (The plain percentile bootstrap of mAP: 79 %.)"
    rng = np.random.default_rng(0)
    found = [make(rng) for _ in range(150)]
    value = np.mean([e.mean_ap() if e.multilabel else e.top(1) for e in found])
    covered = np.mean([low <= value <= high for low, high in (e.interval(resamples=200) for e in found)])
    assert 0.90 <= covered <= 0.99


def draw_several(rng, n=300, classes=30):
    labels = torch.from_numpy(rng.random((n, classes)) < 0.05).long()
    return Evaluation(torch.from_numpy(rng.normal(size=(n, classes))).float() + labels, labels, [str(k) for k in range(classes)])


def draw_one(rng, n=150):
    labels = torch.from_numpy(rng.integers(4, size=n))
    return Evaluation(torch.from_numpy(rng.normal(size=(n, 4))).float() + torch.nn.functional.one_hot(labels, 4), labels, list("abcd"))


def test_what_has_no_meaning_for_several_labels_says_so():
    e = several()
    for ask in (e.top, lambda: e.confusion, e.most_confused, e.plot_confusion, e.calibration_error, e.plot_calibration):
        with pytest.raises(ValueError, match="wants one label a clip, and these clips have several"): ask()
    with pytest.raises(ValueError, match="use top"): scores().mean_ap()
    with pytest.raises(ValueError, match="nothing to score"): Evaluation(e.logits, e.labels * 0, e.classes).mean_ap()
    with pytest.raises(ValueError, match="one table"): comparison_table(dict(a=e, b=scores()))


@pytest.mark.parametrize("e", [scores(), several(), Evaluation(torch.randn(3, 1), torch.tensor([[1], [0], [1]]), ["only <b>"])])
def test_every_result_has_a_table_a_line_a_plot_and_a_file(tmp_path, e):
    record = json.loads(e.to_json(tmp_path / "r.json", dataset="somewhere").read_text())
    assert record["dataset"] == "somewhere" and record["clips"] == len(e.labels) and len(record["per_class"]) == len(e.classes) - len(e.left_out)
    low, high = record["mean_ap_interval" if e.multilabel else "top1_interval"]
    value = record["mean_ap" if e.multilabel else "top1"]
    assert 0 <= low <= high <= 1 and f"{value:.1%} [{low:.1%}, {high:.1%}]" in e.headline() and f"{value:.1%}" in e._repr_html_()
    assert len(e.plot_per_class().data[0].x) == len(record["per_class"])


# the loader, the batch, the model

def model(classes=4, **kw):
    torch.manual_seed(0)
    return tsm_tiny(num_classes=classes, **kw)


@pytest.mark.parametrize("views", [(), (3,)])
def test_scores_do_not_depend_on_the_batch(views):
    torch.manual_seed(1)
    clips = TensorDataset(torch.randn(7, *views, 4, 3, 32, 32), torch.arange(7) % 4)
    whole = evaluate(model(), DataLoader(clips, 7))
    for size in (1, 2, 3, 4):
        part = evaluate(model(), DataLoader(clips, size))
        assert torch.allclose(part.logits, whole.logits, rtol=0, atol=1e-5) and torch.equal(part.labels, whole.labels)
        assert torch.equal(part.logits, evaluate(model(), DataLoader(clips, size)).logits)  # the same batches: the same bits


def test_loaders_that_shuffle_or_drop_are_refused():
    clips = TensorDataset(torch.randn(7, 4, 3, 32, 32), torch.arange(7) % 4)
    with pytest.raises(ValueError, match="drop_last=False"): evaluate(model(), DataLoader(clips, 4, drop_last=True))
    with pytest.raises(ValueError, match="shuffle=False"): evaluate(model(), DataLoader(clips, 4, shuffle=True))
    with pytest.raises(ValueError, match="no clips"): evaluate(model(), DataLoader(TensorDataset(torch.zeros(0, 4, 3, 32, 32), torch.zeros(0)), 4))


def test_the_model_comes_back_as_it_was_even_after_an_error():
    class Broken(Dataset):
        def __len__(self): return 2
        def __getitem__(self, i): raise VideoReadError("clip.mp4: cannot be read")
    m = model().train()
    m.layer1.eval()  # frozen
    modes = [part.training for part in m.modules()]
    with pytest.raises(VideoReadError): evaluate(m, DataLoader(Broken(), 2))
    assert [part.training for part in m.modules()] == modes


def test_a_broken_model_is_not_taken_for_a_bad_one():
    m = model()
    torch.nn.init.constant_(m.fc.bias, float("nan"))
    with pytest.raises(ValueError, match="5 of 5 clips have scores that are not finite"): evaluate(m, DataLoader(TensorDataset(torch.randn(5, 4, 3, 32, 32), torch.zeros(5)), 2))


# protocols

@pytest.mark.parametrize("name", ["1x1", "10x1", "10x3"])
@pytest.mark.parametrize("kind, folder, split", [(SomethingV1, "something_v1", "validation"), (SomethingV2, "something_v2", "validation")])
def test_a_protocol_is_the_mean_over_the_views_it_promises(name, kind, folder, split):
    protocol = PROTOCOLS[name]
    data = protocol.dataset(kind, SAMPLES / folder, split, size=32, num_frames=4)
    m = model(len(data.classes)).eval()
    result = protocol.evaluate(m, data, batch_size=16)
    video = data[3][0].reshape(-1, 4, 3, 32, 32)
    assert len(video) == protocol.views and len(result.labels) == len(data) and result.clips[3] == "/".join(data.items[3][0].parts[-2:])
    with torch.no_grad(): by_hand = m(video).mean(0)
    assert torch.allclose(result.logits[3], by_hand, atol=1e-5)


def test_the_charades_protocol_is_the_largest_sigmoid():
    data = PROTOCOLS["charades"].dataset(Charades, SAMPLES / "charades", "test", size=32, num_frames=4, sampling="dense")
    m = model(len(data.classes)).eval()
    result = PROTOCOLS["charades"].evaluate(m, data)
    with torch.no_grad(): by_hand = m(data[1][0]).sigmoid().amax(0)
    assert data[1][0].shape == (10, 4, 3, 32, 32) and torch.allclose(result.logits[1].sigmoid(), by_hand, atol=1e-5)
    assert result.multilabel and torch.equal(result.labels, data.targets.long())


def test_memory_does_not_grow_with_the_protocol():
    data, seen = PROTOCOLS["10x1"].dataset(SomethingV2, SAMPLES / "something_v2", "validation", size=32, num_frames=4), []
    m = model(len(data.classes))
    m.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    PROTOCOLS["10x1"].evaluate(m, data, batch_size=20)
    assert max(seen) == 20


def test_protocols_and_data_that_do_not_belong_together_are_refused():
    with pytest.raises(TypeError, match="data sets that read them"): Protocol().dataset(ShortActions, "test")
    data = PROTOCOLS["1x1"].dataset(SomethingV2, SAMPLES / "something_v2", "validation", size=32)
    with pytest.raises(ValueError, match="shows 1 views in time, the protocol asks for 10"): PROTOCOLS["10x1"].evaluate(model(), data)
    with pytest.raises(ValueError, match="crops must be 1 or 3"): Protocol(crops=2).dataset(ClipDataset, [], [])


# what went wrong

@pytest.mark.parametrize("e", [scores(), several(9, 4)])
def test_the_clips_that_went_most_wrong_are_shown(e):
    worst = e.top_losses(100)
    assert sorted(w.item for w in worst) == list(range(9)) and [w.loss for w in worst] == sorted((w.loss for w in worst), reverse=True)
    picture = e.plot_top_losses(TensorDataset(torch.randint(256, (9, 4, 3, 16, 20), dtype=torch.uint8), e.labels), 3, height=40)
    assert picture.height == 3 * (40 + 16 + 8) and picture.width >= 4 * 50
    with pytest.raises(ValueError, match="of 9 clips, the data set has 8"): e.plot_top_losses(TensorDataset(torch.zeros(8, 4, 3, 16, 20)))


# the paper's numbers

def test_reported_rows_are_those_of_the_paper():
    "Sums over the columns of the printed tables: a figure that is changed by mistake changes them."
    def total(values): return round(sum(v for v in values if v is not None), 1)
    assert [total(r.scores[k] for r in TABLE_1) for k in range(4)] == [1501.5, 2257.9, 1612.1, 2232.0]
    assert total(r.params for r in TABLE_1) == 868.3 and total(r.gmacs for r in TABLE_1) == 2666
    assert total(r.scores[0] for r in TABLE_2) == 324.9 and total(r.gmacs for r in TABLE_2) == 290.4
    assert TABLE_1[-1] == type(TABLE_1[0])("STASTA (Ours)", "STASTA", "16+8", 49.3, 118.0, 10, (57.9, 86.4, 68.5, 92.8))


def test_no_number_of_the_paper_stands_in_a_measured_column():
    "Without runs the accuracy column is empty; what is counted does not change when the printed figures do."
    before = [(r["params"], r["gmacs"], r["accuracy"]) for r in paper_table(2).rows]
    assert {accuracy for *_, accuracy in before} == {""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "TABLE_2", tuple(replace(r, params=1.0, gmacs=1.0, scores=(1.0,)) for r in TABLE_2))
        assert [(r["params"], r["gmacs"], r["accuracy"]) for r in paper_table(2).rows] == before


def test_a_run_fills_its_own_row_with_its_data_set(tmp_path):
    scores().to_json(tmp_path / "a.json", model="stasta_resnet50", num_frames=16, dataset="<ours>")
    scores().to_json(tmp_path / "b.json", model="tsm", num_frames=8, dataset="ours", views=10)   # Table 1 has no such row
    (tmp_path / "c.json").write_text("[1, 2]")                                                   # another kind of result
    table = paper_table(1, tmp_path)
    filled = {(r["reported"].method, r["reported"].frames) for r in table.rows if r["accuracy"]}
    assert filled == {("STASTA (Ours)", "16")} and "&lt;ours&gt; (4 classes, 9 clips)" in table._repr_html_()
    with pytest.raises(FileNotFoundError, match="no such folder"): paper_table(1, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="notebook 14 has 3 and 4"): paper_table(4)


def test_figure_1_says_where_its_numbers_are_from():
    fig = paper_figure1()
    assert "reported" in fig.layout.title.text and "TDN-R50" in fig.layout.annotations[0].text
    drawn = {(x, y) for trace in fig.data for x, y in zip(trace.x, trace.y)}
    assert (1180.0, 57.9) in drawn and (33.0, 45.6) in drawn and len(drawn) == 20


def test_headlines_are_one_line():
    for e in (scores(), several()): assert re.fullmatch(r"(top-1|mAP) [^\n]*clips, chance [\d.]+%", e.headline())
