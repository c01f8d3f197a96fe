"What must hold for the model floors (05 to 10) and would be in the way in a notebook."
import copy
import importlib.util
import json
from functools import partial
from pathlib import Path
from unittest import mock
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18, r3d_18

from stasta_edu.backbone import TSMResNet, temporal_shift, tsm_resnet18, tsm_tiny, tsn_tiny
from stasta_edu.correlation import local_correlation, soft_argmax_displacement
from stasta_edu.stasta import STASTA, STASTABlock, inner_maps, plug_in, stasta_tiny

COMBINATIONS = [(), ("st_afs_ff",), ("dm_ta",), ("st_afs_ff", "dm_ta"), ("dm_ta", "st_afs_ff")]


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def speaking(**kw):  # a model of which no part is silent any more
    model = stasta_tiny(**{"num_classes": 5, "silent_modules": False, **kw})
    nn.init.normal_(model.stasta.project[1].weight)
    return model


@pytest.mark.parametrize("video, error, words", [
    (torch.zeros(8, 3, 32, 32), ValueError, "clip[None]"),
    (torch.zeros(1, 3, 8, 32, 32), ValueError, "(B, T, 3, H, W)"),
    (torch.zeros(1, 7, 3, 32, 32), ValueError, "7 frames cannot be divided by alpha=2"),
    (torch.zeros(1, 1, 3, 32, 32), ValueError, "1 frames cannot be divided by alpha=2"),
    (torch.zeros(1, 8, 3, 32, 32, dtype=torch.uint8), TypeError, "float frames"),
    (torch.full((1, 8, 3, 32, 32), float("nan")), ValueError, "NaN"),
    (torch.full((1, 8, 3, 32, 32), float("inf")), ValueError, "infinite"),
    (torch.zeros(0, 8, 3, 32, 32), ValueError, "at least one clip"),
    ([[0.5]], TypeError, "got list"),
])
def test_bad_videos_are_named(video, error, words):
    with pytest.raises(error) as caught: stasta_tiny(num_classes=2).eval()(video)
    assert words in str(caught.value)


@pytest.mark.parametrize("arguments, words", [
    (dict(modules=("st_afs_ff", "tam")), "unknown module 'tam'"),
    (dict(modules=("dm_ta", "dm_ta")), "named once"),
    (dict(after="layer5"), "after='layer5'"),
    (dict(alpha=0), "got alpha=0"),
    (dict(radius=-1), "radius=-1"),
    (dict(corr_channels=0), "corr_channels=0"),
    (dict(block="wide"), "unknown block 'wide'"),
    (dict(fold_div=64), "fold_div=64"),
    (dict(weights="IMAGENET1K_V1"), "the path of a .pth or .safetensors file"),
])
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as caught: stasta_tiny(**arguments)
    assert words in str(caught.value)


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with mock.patch("torchvision.models._api.load_state_dict_from_url", side_effect=URLError("no route to host")):
        with pytest.raises(FileNotFoundError) as caught: tsm_resnet18(weights="IMAGENET1K_V1")
    for words in ("resnet18-f37072fd.pth", "no route to host", str(tmp_path), "weights='/path/to/"): assert words in str(caught.value)


@pytest.mark.parametrize("modules", COMBINATIONS)
def test_one_step_of_training_reaches_every_parameter(modules):
    model, video = speaking(modules=modules), torch.randn(4, 4, 3, 48, 48)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(video), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    # scales and biases in front of a norm or a softmax may have no effect; every weight matrix must move
    assert not [name for name, p in model.named_parameters() if p.ndim > 1 and torch.equal(p, before[name])]


@pytest.mark.parametrize("modules", COMBINATIONS)
def test_a_silent_block_changes_no_bit(modules):
    model, plain = stasta_tiny(num_classes=5, modules=modules, zero_init=True).eval(), tsm_tiny(num_classes=5).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("stasta.")})
    video = torch.randn(2, 8, 3, 64, 64)
    assert torch.equal(model(video), plain(video))


@pytest.mark.parametrize("build", [partial(stasta_tiny, silent_modules=False), lambda **kw: plug_in(resnet18(num_classes=5), num_frames=8, fast_channels=8, slow_channels=16, **kw)])
def test_zero_init_decides_whether_the_block_learns_from_the_first_step(build):
    for zero_init in (True, False):
        torch.manual_seed(0)
        model = build(zero_init=zero_init)
        block = next(m for m in model.modules() if isinstance(m, STASTABlock))
        model(torch.randn(2, 8, 3, 64, 64) if isinstance(model, STASTA) else torch.randn(16, 3, 64, 64)).square().sum().backward()
        silent = [not p.grad.any() for name, p in block.named_parameters() if p.ndim > 1]
        assert all(silent) if zero_init else not any(silent)
        assert block.project[1].weight.grad.any() and not block.project[1].weight.any() == zero_init


@pytest.mark.parametrize("modules", COMBINATIONS[1:])
def test_silent_modules_begin_as_none_and_join_in(modules):
    model, plain, video = stasta_tiny(num_classes=5, modules=modules), stasta_tiny(num_classes=5, modules=()), torch.randn(4, 8, 3, 48, 48)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    if "dm_ta" not in modules: torch.testing.assert_close(model.eval()(video), plain.eval()(video), atol=1e-5, rtol=1e-5)  # its gate is nearly closed, not shut
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1)
    for _ in range(3):  # what stands in front of a silent layer waits for it
        optimizer.zero_grad()
        F.cross_entropy(model(video), torch.arange(4)).backward()
        optimizer.step()
    assert not [name for name, p in model.named_parameters() if p.ndim > 1 and torch.equal(p, before[name])]


def test_zero_init_is_saved_and_older_folders_still_load(tmp_path):
    model, video = stasta_tiny(num_classes=5, zero_init=False).eval(), torch.randn(1, 8, 3, 64, 64)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("zero_init") is False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(STASTA.from_pretrained(tmp_path)(video), model(video))


def test_clips_keep_to_themselves_and_frames_do_not():
    model, video = speaking().eval(), torch.randn(3, 8, 3, 64, 64)
    order = torch.tensor([1, 2, 0])
    torch.testing.assert_close(model(video[order]), model(video)[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(video[:1]), model(video)[:1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(video.flip(1)), model(video), atol=1e-4)


def test_without_shift_the_order_of_frames_is_lost():
    model, video = tsn_tiny(num_classes=5).eval(), torch.randn(2, 8, 3, 32, 32)
    torch.testing.assert_close(model(video[:, torch.randperm(8)]), model(video))


@pytest.mark.parametrize("T", [2, 8, 16, 32])
@pytest.mark.parametrize("size", [(33, 47), (64, 40)])
def test_any_length_and_size(T, size):
    model = speaking().eval()
    maps, block = model.maps(torch.randn(2, T, 3, *size)), model.stasta
    h, w = (-(-side // model.stride) for side in size)
    assert maps.logits.shape == (2, 5) and maps.logits.isfinite().all()
    assert maps.importance.shape == (2, T) and maps.importance_map.shape == (2, T, h, w)
    assert maps.attention.shape == (2, h, w, T, T)
    assert maps.displacement_slow.shape == (2, T // 2, 2, h, w) and maps.displacement_fast.shape == (2, T, 2, h, w)
    assert maps.gate.shape == (2, T, block.project[0].in_channels) and maps.stride == model.stride and maps.radius == block.tempo.radius


@pytest.mark.parametrize("T", [1, 3, 8, 16, 32])
def test_odd_numbers_of_frames_work_with_alpha_one(T):
    assert speaking(alpha=1).eval()(torch.randn(2, T, 3, 32, 32)).isfinite().all()


def test_maps_of_absent_modules_are_none():
    maps = speaking(modules=("dm_ta",)).eval().maps(torch.randn(1, 4, 3, 32, 32))
    assert maps.importance is None and maps.attention is None and maps.gate is not None


def test_maps_and_forward_give_the_same_bits():
    model, video = speaking().eval(), torch.randn(2, 8, 3, 64, 64)
    maps = model.maps(video)
    assert torch.equal(maps.logits, model(video))
    torch.testing.assert_close(maps.attention.sum(-1), torch.ones(maps.attention.shape[:-1]))
    assert maps.displacement_fast.abs().max() <= 1 + 1e-5


def test_saved_models_come_back_with_their_arguments(tmp_path):
    model = speaking(modules=("dm_ta", "st_afs_ff"), radius=3, dropout=0.1, num_frames=4, temperature=10.).eval()
    model.save_pretrained(tmp_path)
    again, video = STASTA.from_pretrained(tmp_path), torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(again(video), model(video))
    assert (again.num_frames, again.stasta.order, again.stasta.tempo.radius, again.dropout.p) == (4, ("dm_ta", "st_afs_ff"), 3, 0.1)
    with pytest.raises(ValueError, match="do not fit TSMResNet"): TSMResNet.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no saved model here"): STASTA.from_pretrained(tmp_path / "typo")


def test_weights_of_another_shape_are_named(tmp_path):
    stasta_tiny(num_classes=5, radius=3).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"radius": 3', '"radius": 2'))
    with pytest.raises(ValueError, match="do not fit STASTA as config.json describes it"): STASTA.from_pretrained(tmp_path)


def test_bfloat16_autocast_stays_close():
    model, video = speaking().eval(), torch.randn(2, 8, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16): rough = model(video)
    fine = model(video)
    assert rough.isfinite().all() and (rough.float() - fine).abs().max() < 0.1 * fine.abs().max() + 1e-3
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16): loss = F.cross_entropy(model(video), torch.arange(2))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_double_precision_and_channels_last():
    model, video = speaking().eval(), torch.randn(1, 4, 3, 40, 40)
    plain = model(video)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(video), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.double()(video.double()).float(), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_correlation_derivatives(radius):
    a, b = (torch.randn(1, 2, 2, 3, dtype=torch.double, requires_grad=True) for _ in "ab")
    def f(a, b): return local_correlation(a, b, radius)
    assert torch.autograd.gradcheck(f, (a, b)) and torch.autograd.gradgradcheck(f, (a, b))


def test_correlation_at_the_paper_s_size_agrees_with_shifts_in_float64():
    a, b = F.normalize(torch.randn(2, 2, 64, 28, 28), dim=2)
    corr, padded = local_correlation(a, b, 7), F.pad(b.double(), (7,) * 4)
    for i, j in ((0, 0), (7, 7), (3, 11), (14, 0), (14, 14)):
        oracle = (a.double() * padded[:, :, i : i + 28, j : j + 28]).sum(1)
        torch.testing.assert_close(corr[:, i, j].double(), oracle, atol=1e-6, rtol=0)


def surroundings(picture, k=5):  # (N, 1, H, W) -> (N, k*k, H, W): what is around each pixel, as features of length one
    x = F.unfold(picture, k, padding=k // 2).unflatten(2, picture.shape[2:])
    return F.normalize(x - x.mean(1, keepdim=True), dim=1)


@pytest.mark.parametrize("what", ["features", "picture"])
@pytest.mark.parametrize("dy", range(-7, 8))
def test_a_shift_gives_its_displacement_over_the_whole_window(what, dy):
    picture = torch.randn(1, 64, 34, 36) if what == "features" else torch.rand(1, 1, 34, 36)
    describe = surroundings if what == "picture" else lambda x: F.normalize(x, dim=1)
    shifts = [(dx, dy) for dx in range(-7, 8)]
    a, b = (describe(torch.cat([picture.roll((y, x), (2, 3)) for x, y in both])) for both in ([(0, 0)] * 15, shifts))
    displacement, confidence = soft_argmax_displacement(local_correlation(a, b, 7))
    inside = slice(9, -9)  # the window and half the surroundings away from the border
    error = 7 * displacement[..., inside, inside] - torch.tensor(shifts).view(15, 2, 1, 1)
    assert error.abs().max() < 0.1
    torch.testing.assert_close(confidence[..., inside, inside], torch.ones(15, 1, 16, 18))


def test_a_plain_loop_in_float64_agrees_with_float32():
    a, b = F.normalize(torch.randn(2, 2, 16, 6, 9), dim=2)
    fast, (x, y) = local_correlation(a, b, 3), (a.double(), b.double())
    for i in range(7):
        for j in range(7):
            for h in range(6):
                for w in range(9):
                    u, v = h + i - 3, w + j - 3
                    oracle = (x[:, :, h, w] * y[:, :, u, v]).sum(1) if 0 <= u < 6 and 0 <= v < 9 else torch.zeros(2, dtype=torch.double)
                    torch.testing.assert_close(fast[:, i, j, h, w].double(), oracle, atol=1e-6, rtol=0)


def test_the_correlation_keeps_at_most_two_more_results_alive():
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks" / "correlation.py")
    spec.loader.exec_module(benchmark := importlib.util.module_from_spec(spec))
    a, b = (torch.randn(benchmark.SHAPE).to(memory_format=torch.channels_last).requires_grad_() for _ in "ab")
    assert benchmark.extra_memory(local_correlation, a, b, benchmark.RADIUS, True) <= 2
    assert benchmark.extra_memory(benchmark.shifts, a, b, benchmark.RADIUS, True) > 1.5, "the measure sees what is kept"
    with torch.no_grad(): assert benchmark.extra_memory(local_correlation, a, b, benchmark.RADIUS, False) <= 2


def test_shift_keeps_the_memory_order():
    x = torch.randn(8, 16, 5, 5).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 4))
    assert temporal_shift(x).stride() == x.stride()


def test_torch_export_and_gradients_of_gradients():
    model, video = speaking().eval(), torch.randn(1, 4, 3, 32, 32)
    exported = torch.export.export(model, (video,)).module()
    torch.testing.assert_close(exported(video), model(video), atol=1e-5, rtol=1e-5)
    video.requires_grad_()
    first = torch.autograd.grad(model(video).square().sum(), video, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), model.conv1.weight)[0].isfinite().all()


@pytest.mark.parametrize("build, clips", [
    (resnet18, torch.randn(2 * 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))),
    (r3d_18, torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(0))),
    (r2plus1d_18, torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(0))),
])
@pytest.mark.parametrize("modules", [(), ("dm_ta", "st_afs_ff")])
def test_plugged_into_networks_of_others(build, clips, modules):
    plain = build(num_classes=3)
    plain.fc.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad) for name, p in plain.named_parameters()}
    net = plug_in(plain.eval(), "layer1", num_frames=4, modules=modules, fast_channels=8, slow_channels=16, radius=3)
    assert torch.equal(net(clips), plain(clips)) and not net.training and not net.fc.weight.requires_grad
    assert not hasattr(plain.layer1, "stasta") and all(torch.equal(p, before[n][0]) for n, p in plain.named_parameters())
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("layer1.stasta.") for name in missing)
    nn.init.normal_(net.layer1.stasta.block.project[1].weight)
    assert not torch.equal(net(clips), plain(clips))
    again = copy.deepcopy(net)  # the copy has a block of its own
    nn.init.zeros_(again.layer1.stasta.block.project[1].weight)
    assert torch.equal(again(clips), plain(clips)) and not torch.equal(net(clips), plain(clips))
    net.train()(clips).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in net.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("model, arguments, words", [
    (lambda: resnet18(), dict(after="layer5"), "no layer 'layer5': choose one of layer1, layer2"),
    (lambda: resnet18(), dict(after="conv1"), "is a Conv2d, and only an nn.Sequential"),
    (lambda: r3d_18(), dict(after="layer4"), "of 8 frames 1 are left behind layer4"),
    (lambda: resnet18(), dict(num_frames=7), "not a multiple of alpha=2"),
    (lambda: resnet18(), dict(modules=("tam",)), "unknown module 'tam'"),
    (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 3))), dict(after="0"), "no convolution"),
    (lambda: tsm_tiny(), {}, "build it with the block"),
])
def test_networks_that_cannot_take_the_block_are_named(model, arguments, words):
    with pytest.raises(ValueError) as caught: plug_in(model(), **arguments)
    assert words in str(caught.value)


def test_inner_maps_of_a_plugged_in_block():
    net, pictures = plug_in(resnet18(num_classes=2), "layer3", num_frames=4, fast_channels=8, slow_channels=16).eval(), torch.randn(8, 3, 64, 64)
    with inner_maps(net) as seen: net(pictures)
    assert seen["attention"].shape == (2, 4, 4, 4, 4) and seen["displacement_slow"].shape == (2, 2, 2, 4, 4)
    seen.clear()
    net(pictures)
    assert not seen  # closed
    with pytest.raises(ValueError, match="found 0; plug_in puts one there"):
        with inner_maps(resnet18()): pass


def test_compiled_in_one_graph_forward_and_backward():
    model, video = speaking(dropout=0.).train(), torch.randn(1, 4, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(video), model(video), atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(m(video).square().sum(), model.conv1.weight)[0] for m in (compiled, model)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_vmap_is_refused_as_the_docstring_says():
    model = speaking().eval()
    with pytest.raises(RuntimeError, match="vmap"): torch.func.vmap(lambda clip: model(clip[None])[0])(torch.randn(2, 4, 3, 32, 32))
