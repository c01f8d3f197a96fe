"What an explanation must not do: change the model, mix clips, invent evidence, be right by accident."
import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation
from torch import nn
from torch.nn import functional as F

from stasta_edu.explain import (Evidence, Truth, baseline_maps, displacement_evidence, endpoint_error, energy_inside, find_layer, follow,
                                freeze_drops, freeze_frames, grad_cam, ground_truth, importance_auc, importance_evidence, normalise_clip,
                                plot_maps, pointing_game, randomised, rank_correlation, score_table)
from stasta_edu.short_actions import ShortActions, ShortClip, ShortTermAction
from stasta_edu.stasta import StastaMaps, stasta_tiny

B, T, H, W = 3, 4, 16, 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Folded(nn.Module):
    "Time folded into the batch; frames meet by a shift before the last block, and in the mean."
    def __init__(self, softmax=False):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()))
        self.fc, self.dropout, self.softmax = nn.Linear(12, 5), nn.Dropout(0.5), softmax

    def forward(self, video):  # (B, T, 3, H, W)
        x = self.layer3(video.flatten(0, 1)).unflatten(0, video.shape[:2])           # (B, T, C, h, w)
        x = torch.cat([x[:, :, :4].roll(1, 1), x[:, :, 4:]], 2).flatten(0, 1)
        x = self.fc(self.dropout(self.layer4(x).mean((2, 3)))).unflatten(0, video.shape[:2]).mean(1)
        return x.softmax(1) if self.softmax else x


class ThreeD(nn.Module):
    "The same idea with 3-D convolutions: takes (B, 3, T, H, W)."
    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv3d(3, 6, 3, (1, 2, 2), 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, video): return self.fc(self.layer4(video).mean((2, 3, 4)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Folded().eval()


@pytest.fixture
def video(): return torch.randn(B, T, 3, H, W, generator=torch.Generator().manual_seed(1))


def by_hand(model, video, target, layer, per_frame):
    "Grad-CAM in plain autograd: features by hook, gradient of the logit, mean, product, sum."
    kept = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model.eval()(video)
    handle.remove()
    grad, = torch.autograd.grad(logits[:, target].sum(), kept[0])
    x, grad = (v.detach().unflatten(0, video.shape[:2]) for v in (kept[0], grad))  # (B, T, C, h, w)
    weights = grad.mean((3, 4) if per_frame else (1, 3, 4), keepdim=True)
    return (weights * x).sum(2)                                                    # (B, T, h, w)


def enlarged(cam): return normalise_clip(F.interpolate(cam[:, None], (T, H, W), mode="trilinear")[:, 0])


# Grad-CAM: right

@pytest.mark.parametrize("weights", ["clip", "frame"])
@pytest.mark.parametrize("name", ["layer3", "layer4.0"])
def test_agrees_with_plain_autograd(model, video, name, weights):
    cam = by_hand(model, video, 2, model.get_submodule(name), weights == "frame")
    torch.testing.assert_close(grad_cam(model, video, 2, name, weights, signed=True), enlarged(cam), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grad_cam(model, video, 2, name, weights), enlarged(cam.relu()), atol=1e-5, rtol=1e-4)


def test_weights_per_clip_and_per_frame_differ_below_the_last_block(model, video):
    maps = [grad_cam(model, video, 1, "layer3", w, signed=True) for w in ("clip", "frame")]
    assert (maps[0] - maps[1]).abs().max() > 0.01
    maps = [grad_cam(model, video, 1, None, w, signed=True) for w in ("clip", "frame")]
    torch.testing.assert_close(*maps, atol=1e-5, rtol=1e-4)


def test_equals_cam_for_pooling_and_a_linear_head(model, video):
    features = LayerActivation(model, model.layer4[-1]).attribute(video)
    cam = torch.einsum("nkyx,k->nyx", features, model.fc.weight[3].detach()).unflatten(0, (B, T))
    torch.testing.assert_close(grad_cam(model, video, 3, signed=True), enlarged(cam), atol=1e-5, rtol=1e-4)


def test_three_d_network(video):
    torch.manual_seed(0)
    model = ThreeD().eval()
    x = video.transpose(1, 2)
    cam = torch.einsum("bktyx,k->btyx", model.layer4(x), model.fc.weight[1]).detach()
    torch.testing.assert_close(grad_cam(model, video, 1, "layer4", signed=True), enlarged(cam), atol=1e-5, rtol=1e-4)
    assert grad_cam(model, video, 1, "layer4", "frame").shape == (B, T, H, W)
    torch.testing.assert_close(grad_cam(model, video, 1, "layer4", input_format=lambda v: v.transpose(1, 2)), grad_cam(model, video, 1, "layer4"))


def test_library_layers_of_five_dimensions_are_frames_first():
    torch.manual_seed(0)
    model, video = stasta_tiny(3, 4).eval(), torch.randn(2, 4, 3, 32, 32)
    nn.init.normal_(model.fc.weight)
    for name in ("stasta", "layer2", "layer4.0"):
        assert grad_cam(model, video, layer=name).shape == (2, 4, 32, 32)
    dim = video.clone()
    dim[:, :2] = 0  # the map of a clip whose first half is black is darker there
    curve = grad_cam(model, dim, layer="layer1").mean((2, 3))
    assert curve.shape == (2, 4) and not torch.allclose(curve[:, :2], curve[:, 2:])


def test_clips_do_not_mix_and_targets_may_differ(model, video):
    maps = grad_cam(model, video, torch.tensor([0, 4, 2]), "layer3")
    for i, target in enumerate((0, 4, 2)):
        torch.testing.assert_close(maps[i : i + 1], grad_cam(model, video[i : i + 1], target, "layer3"), atol=1e-5, rtol=1e-4)


def test_no_target_means_the_predicted_class(model, video):
    torch.testing.assert_close(grad_cam(model, video), grad_cam(model, video, model(video).argmax(1)))


def test_the_map_is_where_and_when_the_evidence_is():
    model = Folded().eval()
    for block in (model.layer3, model.layer4[0]):  # every channel measures brightness
        nn.init.ones_(block[0].weight)
        nn.init.zeros_(block[0].bias)
    nn.init.ones_(model.fc.weight)
    model.forward = lambda video: model.fc(model.layer4(model.layer3(video.flatten(0, 1))).mean((2, 3))).unflatten(0, video.shape[:2]).mean(1)
    for t, y, x in ((0, 4, 8), (2, 8, 12), (3, 8, 4)):
        video = torch.zeros(1, T, 3, H, W)
        video[0, t, :, y - 1 : y + 2, x - 1 : x + 2] = 1
        heat = grad_cam(model, video, 0)[0]
        peak = (heat == heat.max()).nonzero().float().mean(0)
        assert peak[0] == t and (peak[1:] - torch.tensor([y, x])).abs().max() <= 2, peak  # half a cell


def test_one_number_scales_a_whole_clip(model, video):
    video[:, 1:] *= 0.02  # almost nothing to see after the first frame
    model.layer4[0][0].bias.data.zero_()
    peaks = grad_cam(model, video, 2, signed=True).abs().amax((2, 3))
    assert peaks.amax(1).sub(1).abs().max() < 1e-6
    assert peaks.amin(1).max() < 0.9  # a frame is not stretched to the full range


def test_no_evidence_stays_zero(model, video):
    model.fc.weight.data[2] = -1  # features are not negative, so everything speaks against class 2
    assert grad_cam(model, video, 2).abs().max() == 0
    assert grad_cam(model, video, 2, signed=True).min() == -1


def test_one_frame_one_pixel_maps(model):
    assert grad_cam(model, torch.randn(1, 1, 3, 4, 4)).shape == (1, 1, 4, 4)


# Grad-CAM: leaves no trace

def test_the_model_is_left_as_it_was(model, video):
    model.train()
    model.layer3[1].eval()                    # a frozen batch norm
    model.layer3[0].weight.requires_grad = False
    model(video).sum().backward()
    def state(): return ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
                         [None if p.grad is None else p.grad.clone() for p in model.parameters()], copy.deepcopy(model.state_dict()),
                         [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()])
    before, asked = state(), video.clone().requires_grad_()
    first = grad_cam(model, asked, 1, "layer3")
    for bad in (dict(target=9), dict(layer="fc")):
        with pytest.raises(ValueError): grad_cam(model, asked, **bad)
    freeze_drops(model, video, 1)
    after = state()
    assert before[:2] == after[:2] and before[4] == after[4] and asked.grad is None
    for a, b in zip(before[2], after[2]): assert (a is None and b is None) or torch.equal(a, b)
    for k in before[3]: assert torch.equal(before[3][k], after[3][k])
    torch.testing.assert_close(first, grad_cam(copy.deepcopy(model).eval(), video, 1, "layer3"))  # dropout and batch norm were off


def test_works_where_gradients_are_switched_off(model, video):
    expected = grad_cam(model, video, 1)
    with torch.no_grad(): torch.testing.assert_close(grad_cam(model, video, 1), expected)
    with torch.inference_mode(): inside = grad_cam(model, video + 0, 1)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(grad_cam(model.requires_grad_(False), video, 1), expected)


def test_half_precision_is_computed_in_float32(model, video):
    half = copy.deepcopy(model).to(torch.bfloat16)
    maps = grad_cam(half, video, 1)
    assert maps.dtype == torch.float32 and half.fc.weight.dtype == torch.bfloat16
    torch.testing.assert_close(maps, grad_cam(copy.deepcopy(half).float(), video, 1))
    with torch.autocast("cpu", torch.bfloat16): torch.testing.assert_close(grad_cam(model, video, 1), grad_cam(model.eval(), video, 1))


# Grad-CAM: bad input

def test_unknown_layer_names_near_ones(model, video):
    with pytest.raises(ValueError, match="did you mean layer3"): grad_cam(model, video, layer="layr3")
    with pytest.raises(ValueError, match="no part of this Folded"): grad_cam(model, video, layer=nn.ReLU())
    with pytest.raises(ValueError, match="has no layer4; pass layer="): find_layer(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="not the feature map of 3 clips"): grad_cam(model, video, layer="fc")
    assert find_layer(model) == find_layer(model, model.layer4[-1]) == "layer4.0"


@pytest.mark.parametrize("target, error", [(5, ValueError), (-1, ValueError), (torch.tensor([0, 1]), ValueError), (1.0, TypeError), (True, TypeError)])
def test_targets_out_of_range(model, video, target, error):
    with pytest.raises(error, match="target"): grad_cam(model, video, target)


def test_a_layer_that_runs_twice_is_refused(video):
    class Twice(Folded):
        def forward(self, video): return super().forward(video) + super().forward(video.flip(1))
    with pytest.raises(ValueError, match="layer3 runs 2 times"): grad_cam(Twice(), video, 1, "layer3")


def test_what_is_no_video_or_no_number(model, video):
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"): grad_cam(model, video[0])
    with pytest.raises(TypeError, match="float"): grad_cam(model, video.byte())
    with pytest.raises(ValueError, match="NaN"): grad_cam(model, video * float("nan"))
    with pytest.raises(ValueError, match="temporal_weights"): grad_cam(model, video, temporal_weights="time")
    with pytest.raises(ValueError, match="input_format"): grad_cam(model, video, input_format="THWC")
    model.fc.weight.data[1] = float("nan")
    with pytest.raises(ValueError, match="layer4.0 holds NaN"): grad_cam(model, video, 1)


def test_probabilities_are_noticed(video):
    with pytest.warns(UserWarning, match="probabilities"): grad_cam(Folded(softmax=True), video, 1)


# Truth

def exact(scene, start, end, owner):
    "Displacement between two frames from the poses of the layers, and which layer owns each pixel."
    moves = [np.eye(2, 3)]
    moves[0][:, 2] = scene.camera[end] - scene.camera[start]
    for layer in scene.layers:
        back, ahead = layer.inverse[start], layer.poses[end]
        moves.append(np.column_stack([ahead[:, :2] @ back[:, :2], ahead[:, :2] @ back[:, 2] + ahead[:, 2]]))
    m = np.stack(moves)[owner]  # (H, W, 2, 3)
    x, y = np.meshgrid(np.arange(scene.size) + 0.5, np.arange(scene.size) + 0.5)
    return np.stack([m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2] - p for i, p in enumerate((x, y))])


@pytest.mark.parametrize("family, i", [("importance", 0), ("importance", 3), ("tempo", 2), ("order", 1)])
def test_following_a_pixel_agrees_with_the_poses(family, i):
    data = ShortActions("validation", family=family, length=4)
    clip, scene = data.clip(i), data.scene(i)
    for start in (5, 15):
        moved, seen = follow(clip, start, start + 5)
        off = np.hypot(*(moved.numpy() - exact(scene, start, start + 5, scene.owners(start))))
        assert seen.float().mean() > 0.5
        assert np.quantile(off[seen], 0.95) < 0.05 and off[seen].mean() < 0.05, (np.quantile(off[seen], 0.95), off[seen].mean())


def toy_clip():
    "A square of 4 x 4 pixels that moves 2 pixels a frame to the right, from frame 2 to 6."
    n, size = 8, 24
    x = np.clip(np.arange(n) - 2, 0, 4) * 2 + 3
    masks, moved = np.zeros((n, size, size), np.uint8), np.zeros((n - 1, 2, size, size), np.float32)
    for t in range(n): masks[t, 8:12, x[t] : x[t] + 4] = 1
    for t in range(n - 1): moved[t, 0][masks[t] == 1] = x[t + 1] - x[t]
    frames = np.repeat(masks[..., None] * 200, 3, -1).astype(np.uint8)
    actions = [ShortTermAction(2, 7, "square", "slides", 2.0, True), ShortTermAction(0, 8, "square", "exists", 0.0, False)]
    return ShortClip(frames, 0, "toy", "toy", actions, masks, ["square"], moved, np.zeros((n - 1, size, size), bool), 12)


def test_truth_at_sampled_frames():
    clip, at = toy_clip(), [0, 2, 4, 6, 7]
    truth = ground_truth(clip, at)
    assert truth.frames.tolist() == [False, True, True, True, False]
    assert truth.mask.flatten(1).sum(1).tolist() == [0, 16, 16, 16, 0]
    on = torch.from_numpy(clip.masks[at[:-1]] == 1)
    assert [truth.displacement[k, 0][on[k]].unique().tolist() for k in range(4)] == [[0], [4], [4], [0]]
    assert truth.displacement[:, 1].abs().max() == 0
    assert bool(truth.visible[on].all())
    covered = ~truth.visible[1]  # background that the square slides over cannot be followed
    assert covered[8:12, 7:11].all() and covered.sum() == 16


def test_truth_of_one_frame_repeated_frames_and_wrong_frames():
    clip = toy_clip()
    assert ground_truth(clip, [3]).displacement.shape == (0, 2, 24, 24)
    twice = ground_truth(clip, [3, 3])
    assert twice.displacement.abs().max() == 0 and bool(twice.visible.all())
    for at in ([], [3, 1], [0, 8], [-1, 2]):
        with pytest.raises(ValueError, match="increasing frames between 0 and 7"): ground_truth(clip, at)


# Scores

def test_importance_auc_against_a_double_loop():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        curve, yes = torch.randint(0, 4, (9,), generator=g), torch.rand(9, generator=g) < 0.4
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in curve[yes].tolist() for b in curve[~yes].tolist()]
        if pairs: assert importance_auc(curve, yes) == pytest.approx(sum(pairs) / len(pairs))
        else: assert np.isnan(importance_auc(curve, yes))
    assert importance_auc([5.0] * 4, [1, 0, 0, 1]) == 0.5
    with pytest.raises(ValueError, match="equal length"): importance_auc([1.0], [1, 0])


def test_energy_factorises_into_time_and_space():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        heat, mask = torch.randn(5, 6, 7, generator=g), torch.rand(5, 6, 7, generator=g) < 0.2
        mask[:2] = False
        both, time, space = (energy_inside(heat, mask, over) for over in ("both", "time", "space"))
        assert both == pytest.approx(time * space, abs=1e-5)
        assert both == pytest.approx((heat.relu() * mask).sum().item() / heat.relu().sum().item(), abs=1e-5)


def test_a_map_that_says_nothing_gets_chance():
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[1, 2:4, 2:4] = True
    for nothing in (torch.zeros(4, 8, 8), torch.zeros(4, 2, 2)):
        assert energy_inside(nothing, mask) == pytest.approx(4 / 256)
        assert energy_inside(nothing, mask, "time") == pytest.approx(1 / 4)
        assert energy_inside(nothing, mask, "space") == pytest.approx(4 / 64)
        assert pointing_game(nothing, mask, 0) == pytest.approx(4 / 256)
        assert pointing_game(nothing, mask, 0, "time") == pytest.approx(1 / 4)
        assert pointing_game(nothing, mask, 0, "space") == pytest.approx(4 / 64)
    empty = torch.zeros(4, 8, 8, dtype=torch.bool)
    assert np.isnan(energy_inside(torch.rand(4, 8, 8), empty)) and np.isnan(pointing_game(torch.rand(4, 8, 8), empty))


def test_tolerance_is_a_distance_in_pixels_within_the_frame():
    mask, heat = torch.zeros(2, 15, 15), torch.zeros(2, 15, 15)
    mask[0, 7, 7] = 1
    heat[0, 4, 3] = 1  # 3 and 4: five pixels away
    assert [pointing_game(heat, mask, t) for t in (4, 4.99, 5, 6)] == [0, 0, 1, 1]
    assert pointing_game(heat.flip(0), mask, 50) == 0
    with pytest.raises(ValueError, match="over must be"): pointing_game(heat, mask, over="frames")
    with pytest.raises(ValueError, match="equal length"): energy_inside(heat, mask[:1])


def test_endpoint_error_in_pixels():
    true = torch.zeros(2, 2, 8, 8)
    true[:, 0, :4], true[:, 1, :4] = 3, 4
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    assert endpoint_error(torch.zeros_like(true), true) == 2.5
    assert np.isnan(endpoint_error(true, true, mask))
    mask[:, :4] = True
    assert endpoint_error(torch.zeros(2, 2, 4, 4), true, mask) == 5
    assert endpoint_error(true, true, mask) == 0
    with pytest.raises(ValueError, match="equal length"): endpoint_error(true[:1], true)


def test_rank_correlation_shares_ties():
    a, b = [1.0, 2, 2, 3, 7], [2.0, 1, 5, 5, 9]
    ranks = np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1]
    assert rank_correlation(a, b) == pytest.approx(ranks)
    assert rank_correlation(a, np.exp(a)) == pytest.approx(1) and rank_correlation(a, [-x for x in a]) == pytest.approx(-1)


# Evidence and tables

def maps_of(**fields): return StastaMaps(logits=torch.zeros(1, 2), radius=4, stride=2, **fields)


def test_the_models_maps_become_evidence():
    maps = maps_of(importance=torch.tensor([[1.0, -2]]), importance_map=torch.ones(1, 2, 3, 3), displacement_fast=torch.full((1, 2, 2, 3, 3), 0.5))
    assert importance_evidence(maps, [3, 8]).values.tolist() == [1, -2]
    assert importance_evidence(maps, kind="space-time map").values.shape == (2, 3, 3)
    field = displacement_evidence(maps, [3, 8])
    assert field.kind == "motion field" and field.values.unique().item() == 4 and field.curve().tolist() == pytest.approx([32**0.5] * 2)
    for make, module in ((importance_evidence, "st_afs_ff"), (displacement_evidence, "dm_ta")):
        with pytest.raises(ValueError, match=module): make(maps_of())


def test_perfect_evidence_gets_perfect_scores():
    truth = ground_truth(toy_clip(), [0, 2, 4, 6])
    perfect = Evidence("truth", "space-time map", truth.mask, truth.at).scores(truth)
    assert perfect == {"pointing": 1, "energy inside": 1, "in time": 1, "in space": 1, "importance AUC": 1}
    field = torch.cat([truth.displacement, truth.displacement[-1:]])
    assert Evidence("truth", "motion field", field, truth.at).scores(truth) == {"end-point error": 0}
    with pytest.raises(ValueError, match="2 time steps, the truth 4"): Evidence("short", "time curve", [1.0, 2]).scores(truth)


@pytest.mark.parametrize("kind, values, at, said", [
    ("heat", torch.zeros(2), None, "kind must be"), ("time curve", torch.zeros(2, 3), None, "1 dimensions"),
    ("space-time map", torch.full((2, 3, 3), float("nan")), None, "NaN"), ("time curve", torch.zeros(2), [1], "2 time steps for 1 frames")])
def test_evidence_that_is_none(kind, values, at, said):
    with pytest.raises(ValueError, match=said): Evidence("x", kind, values, at)


def test_table_pairs_clips_and_leaves_out_what_has_no_answer():
    truth, none = ground_truth(toy_clip(), [0, 2, 4, 6]), ground_truth(toy_clip(), [0, 1, 7])
    def found(t): return [Evidence("<good>", "space-time map", t.mask.float(), t.at), Evidence("flat", "space-time map", torch.ones(t.mask.shape), t.at)]
    table = score_table([found(t) for t in (truth, none, truth)], [truth, none, truth])
    assert table.interval("<good>", "energy inside") == (1, 1, 1)
    mean, low, high = table.interval("<good>", "energy inside", than="flat")
    assert low <= mean <= high and mean == pytest.approx(1 - 48 / (4 * 24 * 24))
    assert np.isnan(score_table([found(none)], [none]).interval("flat", "pointing")[0])
    assert "&lt;good&gt;" in table._repr_html_() and table.plot("pointing") is not None
    with pytest.raises(ValueError, match="as many"): score_table([], [])
    with pytest.raises(ValueError, match="same methods"): score_table([found(truth), found(truth)[:1]], [truth, truth])


def test_baselines_know_nothing_of_a_model(video):
    maps = baseline_maps(video)
    assert {m.shape for m in maps.values()} == {(B, T, H, W)}
    assert all(m.min() >= 0 and m.amax((1, 2, 3)).sub(1).abs().max() < 1e-6 for m in maps.values())
    still = baseline_maps(video[:, :1].expand(-1, T, -1, -1, -1))
    assert still["frame difference"].abs().max() == 0
    assert torch.equal(maps["random"], baseline_maps(video)["random"])
    assert baseline_maps(video[:, :1])["frame difference"].abs().max() == 0  # one frame: nothing to compare
    with pytest.raises(TypeError): baseline_maps(video.byte())


# Faithfulness

def test_freezing_takes_frames_away_and_keeps_the_others():
    x = torch.arange(6.0).view(1, 6, 1, 1, 1)
    assert freeze_frames(x, [2, 3]).flatten().tolist() == [0, 1, 1, 1, 4, 5]
    assert freeze_frames(x, [0, 1]).flatten().tolist() == [2, 2, 2, 3, 4, 5]
    assert torch.equal(freeze_frames(x, []), x)
    for gone in (range(6), [6], [-1]):
        with pytest.raises(ValueError, match="cannot freeze"): freeze_frames(x, gone)


def test_the_drop_is_the_difference_of_logits(model, video):
    drops = freeze_drops(model, video, 2, length=2)
    assert drops.shape == (B, T - 1)
    with torch.no_grad(): expected = model(video)[:, 2] - model(freeze_frames(video, [1, 2]))[:, 2]
    torch.testing.assert_close(drops[:, 1], expected)
    same = video[:, :1].expand(-1, T, -1, -1, -1)
    assert freeze_drops(model, same).abs().max() < 1e-5  # nothing moves: nothing is lost
    with pytest.raises(ValueError, match="length must be 1 to 3"): freeze_drops(model, video, length=T)


def test_randomised_is_a_copy_and_leaves_the_random_state(model):
    before, state = model.fc.weight.clone(), torch.random.get_rng_state()
    other = randomised(model, ["fc"], seed=3)
    assert torch.equal(model.fc.weight, before) and not torch.equal(other.fc.weight, before)
    assert torch.equal(other.layer3[0].weight, model.layer3[0].weight)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(other.fc.weight, randomised(model, ["fc"], seed=3).fc.weight)


def test_the_map_depends_on_the_weights(model, video):
    before = grad_cam(model, video, 1, signed=True)
    after = grad_cam(randomised(model, ["layer3", "layer4", "fc"], seed=7), video, 1, signed=True)
    assert abs(rank_correlation(before, after)) < 0.8


def test_pictures(video):
    frames = np.zeros((T, H, W, 3), np.uint8)
    heat, mask = torch.rand(T, 4, 5), torch.zeros(T, H, W, dtype=torch.bool)
    mask[1, 4:9, 4:9] = True
    picture = plot_maps(frames, {"heat": heat, "signed": heat - 0.5}, mask, at=[0, 3, 5, 8])
    assert picture.width >= T * W * 2 and picture.height >= 3 * H * 2
    assert (0, 158, 115) in {c for _, c in picture.convert("RGB").getcolors(1 << 24)}
