"What an explanation must not do: change the model, mix clips, invent evidence, be right by accident."
import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation
from torch import nn
from torch.nn import functional as F

from stasta_edu.explain import (Evidence, ScoreTable, action_effects, attention_evidence, baseline_maps, cascade_similarity, cut_frames, displacement_evidence,
                                endpoint_error, energy_inside, find_layer, follow, freeze_drops, freeze_frames, gate_evidence, grad_cam, ground_truth,
                                importance_auc, importance_evidence, insertion_deletion, integrated_gradients, normalise_clip, occlusion, own_evidence,
                                plot_maps, pointing_game, randomised, rank_correlation, reference, score_table, shuffle_similarity)
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


def test_torchvisions_three_d_network(video):
    from torchvision.models.video import r3d_18
    torch.manual_seed(0)
    model, video = r3d_18(num_classes=5).eval(), torch.randn(1, 8, 3, 32, 32)
    kept = []
    handle = model.layer3[-1].register_forward_hook(lambda m, i, o: kept.append(o))
    logits = model(video.transpose(1, 2))
    handle.remove()
    grad, = torch.autograd.grad(logits[0, 3], kept[0])                                             # (1, C, T', h, w)
    cam = (grad.mean((2, 3, 4), keepdim=True) * kept[0]).sum(1, keepdim=True).detach()
    expected = normalise_clip(F.interpolate(cam, (8, 32, 32), mode="trilinear")[:, 0])
    torch.testing.assert_close(grad_cam(model, video, 3, "layer3", signed=True), expected, atol=1e-4, rtol=1e-3)
    for maps in (grad_cam(model, video), grad_cam(model, video, temporal_weights="frame")): assert maps.shape == (1, 8, 32, 32)


def test_a_three_d_network_of_this_library_takes_frames_first(video):
    class Here(ThreeD):
        def forward(self, video): return super().forward(video.transpose(1, 2))  # (B, T, 3, H, W), as all models of the library
    torch.manual_seed(0)
    here, there = Here().eval(), ThreeD().eval()
    there.load_state_dict(here.state_dict())
    Here.__module__ = "stasta_edu.somewhere"
    torch.testing.assert_close(grad_cam(here, video, 1), grad_cam(there, video, 1))


class TwoPathways(nn.Module):
    "A slow and a fast 3-D network, joined at the classifier."
    def __init__(self):
        super().__init__()
        self.slow, self.fast, self.fc = ThreeD(), ThreeD(), nn.Linear(12, 5)

    def forward(self, video):  # (B, 3, T, H, W)
        return self.fc(torch.cat([self.slow.layer4(video[:, :, ::2]).mean((2, 3, 4)), self.fast.layer4(video).mean((2, 3, 4))], 1))


def test_a_map_for_each_pathway(video):
    torch.manual_seed(0)
    model = TwoPathways().eval()
    maps, x = grad_cam(model, video, 1, signed=True), video.transpose(1, 2)
    assert set(maps) == {"slow.layer4.1", "fast.layer4.1"}
    for name, part, weight in (("slow.layer4.1", model.slow.layer4(x[:, :, ::2]), model.fc.weight[1, :6]), ("fast.layer4.1", model.fast.layer4(x), model.fc.weight[1, 6:])):
        torch.testing.assert_close(maps[name], enlarged(torch.einsum("bktyx,k->btyx", part, weight).detach()), atol=1e-4, rtol=1e-3)
    one = grad_cam(model, video, 1, ["fast.layer4"], signed=True)
    torch.testing.assert_close(one["fast.layer4"], maps["fast.layer4.1"])


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


# Pixels: integrated gradients and occlusion

def test_shares_add_up_to_the_difference_of_logits():
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)
        def forward(self, video): return self.fc(video.pow(2).mean((1, 3, 4)))
    torch.manual_seed(0)
    model, video = Smooth(), torch.rand(2, 4, 3, 8, 8)
    from stasta_edu.explain import _integrated
    for kind in ("blurred", "frozen", "grey"):
        shares = _integrated(model, video, torch.tensor([1, 3]), kind, 16, "auto").sum((1, 2, 3, 4))
        with torch.no_grad(): gained = (model(video) - model(reference(video, kind)))[[0, 1], [1, 3]]
        torch.testing.assert_close(shares, gained, atol=1e-4, rtol=1e-3)
    maps = integrated_gradients(model, video, 1, "frozen", signed=True)
    assert maps[:, 0].abs().max() == 0, "the first frame is its own reference"
    assert maps.abs().amax((1, 2, 3)).sub(1).abs().max() < 1e-6


def test_occlusion_finds_the_box_that_matters():
    class Corner(nn.Module):
        def forward(self, video): return video[:, 1, :, :8, :8].mean((1, 2, 3))[:, None]
    video = torch.rand(2, 4, 3, 16, 16) + 1
    heat = occlusion(Corner(), video, window=(1, 8, 8), baseline="grey")
    for clip in heat: assert (clip == 1).nonzero()[:, 0].unique().tolist() == [1] and clip[1, :4, :4].min() == 1
    assert heat[:, [0, 2, 3]].max() == 0 and heat[:, 1, 12:].max() == 0
    assert occlusion(Corner(), video, window=(99, 99, 99)).shape == video[:, :, 0].shape  # larger than the clip: the clip
    assert occlusion(Corner(), video[:, :2, :, :9, :9], window=(1, 1, 1), stride=(5, 5, 5)).shape == (2, 2, 9, 9)


@pytest.mark.parametrize("method", [integrated_gradients, occlusion])
def test_pixel_methods_leave_no_trace_and_do_not_mix_clips(model, video, method):
    model.train()
    before = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()], copy.deepcopy(model.state_dict()))
    maps = method(model, video, torch.tensor([0, 4, 2]))
    assert before[:2] == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) and all(p.grad is None for p in model.parameters())
    for k, v in model.state_dict().items(): assert torch.equal(v, before[2][k])
    torch.testing.assert_close(maps[1:2], method(model, video[1:2], 4), atol=1e-4, rtol=1e-3)
    with torch.no_grad(): torch.testing.assert_close(method(model, video, torch.tensor([0, 4, 2])), maps)
    with pytest.raises(ValueError, match="out of range"): method(model, video, 5)
    with pytest.raises(ValueError, match="'blurred', 'frozen' or 'grey'"): method(model, video, baseline="black")
    same = video[:, :1].expand(-1, T, -1, -1, -1)
    assert method(model, same, 1, baseline="frozen").abs().max() == 0, "nothing moves, so nothing can be missing"


@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 1), (1, 1, 3, 2, 2), (1, 2, 3, 5, 4)])
def test_references_of_tiny_clips(shape):
    for kind in ("blurred", "frozen", "grey"): assert reference(torch.rand(shape), kind).shape == shape


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
    with pytest.raises(ValueError, match=r"speaks of frames \[0, 1\], the truth of \[0, 2, 4, 6\]"): Evidence("short", "time curve", [1.0, 2]).scores(truth)


def test_all_maps_of_a_model_in_one_form():
    torch.manual_seed(0)
    model, video, at = stasta_tiny(3, 4).eval(), torch.randn(2, 4, 3, 32, 32), [2, 5, 9, 12]
    own = {e.name: e for e in own_evidence(model.maps(video), at, 1)}
    assert set(own) == {"importance", "importance map", "attention", "attention map", "displacement", "slow displacement", "gate"}
    torch.testing.assert_close(own["attention"].values.sum(1), torch.ones(4))
    torch.testing.assert_close(own["attention"].curve(), own["attention map"].curve())
    assert own["slow displacement"].at == [2, 9] and own["displacement"].at == at
    assert own["gate"].values.min() > 0 and own["gate"].values.max() < 1
    assert [e.name for e in own_evidence(stasta_tiny(3, 4, modules=()).eval().maps(video))] == []
    bare = maps_of()
    for make, module in ((attention_evidence, "st_afs_ff"), (gate_evidence, "dm_ta")):
        with pytest.raises(ValueError, match=module): make(bare)
    with pytest.raises(ValueError, match="'fast' or 'slow'"): displacement_evidence(model.maps(video), tempo="medium")


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


def test_tables_survive_json():
    import json
    table = ScoreTable({"<a>": {"pointing": torch.tensor([0.5, float("nan")], dtype=torch.float64)}})
    back = ScoreTable.from_lists(json.loads(json.dumps(table.to_lists(), allow_nan=False)))
    assert back.interval("<a>", "pointing")[0] == 0.5 and torch.isnan(back.values["<a>"]["pointing"][1])


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


# Actions, pixels, order

def reader(t):
    "A model whose answer hangs on frame `t` alone: class 1 if it is bright."
    class Reader(nn.Module):
        def forward(self, video): return torch.stack([torch.zeros(len(video)), 10 * (video[:, t].mean((1, 2, 3)) - 0.5)], 1)
    return Reader()


def test_the_action_that_decides_is_found():
    video = torch.zeros(1, 6, 3, 8, 8)
    video[:, 2] = 1
    actions = [ShortTermAction(0, 4, "a", "waits", 0.0, False), ShortTermAction(4, 6, "b", "flashes", 0.0, True), ShortTermAction(9, 12, "a", "goes", 0.0, False),
               ShortTermAction(20, 22, "a", "is not seen", 0.0, False), ShortTermAction(0, 12, "c", "stands", 0.0, False)]
    waits, flash, later, unseen, always = action_effects(reader(2), video, actions, at=[0, 2, 4, 6, 8, 10])
    assert flash.frames == [2] and flash.changed and (flash.before, flash.after) == (1, 0) and flash.drop == pytest.approx(10)
    assert not later.changed and later.drop == 0 and later.frames == [5]
    assert unseen.frames == [] and unseen.drop == 0 and not unseen.changed
    assert np.isnan(always.drop) and always.after is None and not always.changed, "nothing else would be left"
    assert action_effects(reader(2), video, actions[1:2], [0, 2, 4, 6, 8, 10], how="cut")[0].changed
    with pytest.raises(ValueError, match="'freeze' or 'cut'"): action_effects(reader(2), video, actions, range(6), how="blur")
    with pytest.raises(ValueError, match="one clip"): action_effects(reader(2), video, actions, range(5))


def test_cutting_fills_the_clip():
    x = torch.arange(5.0).view(1, 5, 1, 1, 1)
    assert cut_frames(x, [0, 1]).flatten().tolist() == [2, 2, 3, 4, 4] and torch.equal(cut_frames(x, []), x)
    with pytest.raises(ValueError, match="cannot cut"): cut_frames(x, range(5))


def test_insertion_and_deletion_know_a_good_map():
    video, good = torch.ones(2, 4, 3, 8, 8), torch.zeros(2, 4, 8, 8)
    good[:, 1] = 1
    found = insertion_deletion(reader(1), video, good, 1, "grey", steps=8)
    assert found.share[[0, -1]].tolist() == [0, 1] and found.insertion.shape == (2, 9)
    assert (found.insertion[:, 2:] > 0.99).all() and (found.deletion[:, 2:] < 0.01).all()  # a quarter of the pixels
    bad = insertion_deletion(reader(1), video, -good, 1, "grey", steps=8)
    assert (bad.insertion_auc < 0.3).all() and (bad.deletion_auc > 0.7).all() and (found.insertion_auc > 0.8).all()
    flat = insertion_deletion(reader(1), video, torch.zeros(2, 4, 8, 8), 1, "grey", steps=8)
    assert (flat.insertion_auc - 0.5).abs().max() < 0.15, "no order at all: chance, not an order of the memory"
    with pytest.raises(ValueError, match="1 maps for 2 clips"): insertion_deletion(reader(1), video, good[:1])


def test_shuffling_says_whether_order_matters(model, video):
    class Bag(Folded):
        def forward(self, video):
            x = self.layer4(self.layer3(video.flatten(0, 1))).mean((2, 3))
            return self.fc(x).unflatten(0, video.shape[:2]).mean(1)
    bag = Bag().eval()
    assert shuffle_similarity(lambda v: grad_cam(bag, v, 1, signed=True), video, seed=1).min() > 0.999
    assert shuffle_similarity(lambda v: grad_cam(model, v, 1, signed=True), video, seed=1).max() < 0.9


def test_cascade_starts_at_the_end(model, video):
    left = cascade_similarity(lambda m, v: grad_cam(m, v, 1, signed=True), model, video, ["fc", "layer4"], seeds=(0, 1))
    assert left.shape == (2, 2, B) and left.abs().max() < 1
    assert cascade_similarity(lambda m, v: v.mean(2), model, video, ["fc"]).min() > 0.999, "a map that ignores the model survives"
