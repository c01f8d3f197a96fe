"Scores that are kept, fused and read back: nothing executed, nothing mixed up."
import numpy as np
import pytest
import torch

from stasta_edu.evaluation import Evaluation, ensemble, load_scores


def scores(n=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Evaluation(torch.randn(n, classes, generator=generator), torch.arange(n) % classes, [f"class {i}" for i in range(classes)])


def test_a_pickle_in_a_scores_file_is_not_executed(tmp_path):
    np.savez(tmp_path / "bad.npz", logits=np.array([{"a": 1}], dtype=object), labels=np.zeros(1), classes=np.array(["a"]))
    with pytest.raises(ValueError, match="allow_pickle"): load_scores(tmp_path / "bad.npz")


def test_a_failed_write_leaves_the_old_scores(tmp_path, monkeypatch):
    path = scores().save(tmp_path / "s.npz")
    before = path.read_bytes()
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError): scores(seed=1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("other", [scores(8), Evaluation(scores().logits, scores().labels.flip(0), scores().classes)])
def test_an_ensemble_of_other_clips_is_refused(other):
    with pytest.raises(ValueError, match="other clips"): ensemble(scores(), other)


def test_per_class_accuracy_adds_up_to_top1():
    e = scores(50)
    share = e.labels.bincount() / 50
    assert sum(share[i].item() * e.per_class()[name] for i, name in enumerate(e.classes)) == pytest.approx(e.top(1), abs=1e-6)
