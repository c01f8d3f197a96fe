"What must not happen in training: a silent NaN, a half-written checkpoint, weights of another model, clips left out."
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stasta_edu.backbone import tsn_tiny
from stasta_edu.evaluation import evaluate
from stasta_edu.training import DataLoaders, Learner, Recipe, parameter_groups


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


def test_nan_stops_the_run_and_says_where():
    dls = loaders()
    dls.train.dataset.tensors[0][5] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss is nan at step [012]"):
        learner(dls).fit()


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
