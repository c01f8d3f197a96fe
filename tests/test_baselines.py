"What must hold for the models to compare with (floor 11) and would be in the way in a notebook."
from unittest import mock
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from stasta_edu.backbone import tsn_resnet18, tsn_tiny
from stasta_edu.baselines import (MSNet, NonLocal, ResNet3d, SlowFast, TempoCorrelation, Trunk3d, get_model, inflate, list_models, model_cost,
                                  neighbour_differences)
from stasta_edu.evaluation import evaluate
from stasta_edu.explain import grad_cam
from stasta_edu.training import DataLoaders, Learner, Recipe
from stasta_edu.widgets import CompareView

TINY = list_models("_tiny")
FULL = [name for name in list_models() if name not in TINY]


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def speaking(name, **kw):  # blocks that are silent at first are not silent any more
    model = get_model(name, **{"num_classes": 5, **({"silent_modules": False} if name == "stasta_tiny" else {}), **kw})
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) and not m.weight.any(): nn.init.normal_(m.weight)
    return model


def with_norms(model):  # as after training: norms not all the same
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(m.weight, 0.5, 1.5), nn.init.normal_(m.bias, std=0.1)
            m.running_mean.normal_(std=0.1), m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def saved(model, path):
    torch.save(model.state_dict(), path)
    return path


# ---- all of them

@pytest.mark.parametrize("name", TINY)
def test_one_step_of_training_reaches_every_parameter(name):
    model, video = speaking(name), torch.randn(4, 8, 3, 64, 64)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(video), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert not [key for key, p in model.named_parameters() if p.ndim > 1 and torch.equal(p, before[key])]


@pytest.mark.parametrize("name", TINY)
def test_clips_keep_to_themselves_and_only_tsn_ignores_order(name):
    model, video = speaking(name).eval(), torch.randn(3, 8, 3, 64, 64)
    order, logits = torch.tensor([1, 2, 0]), model(video)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model(video[order]), logits[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(video[:1]), logits[:1], atol=1e-4, rtol=1e-4)
    assert torch.allclose(model(video.flip(1)), logits, atol=1e-5) == (name == "tsn_tiny")


@pytest.mark.parametrize("name", TINY)
def test_grad_cam_finds_its_layer(name):
    model, video = speaking(name).eval(), torch.randn(2, 8, 3, 64, 64)
    maps = grad_cam(model, video, target=torch.tensor([1, 2]), signed=True)   # without training all evidence may be against a class
    both = maps if isinstance(maps, dict) else {"only": maps}
    assert sorted(both) == (["fast.layer4.0", "slow.layer4.0"] if name == "slowfast_tiny" else ["only"])
    for m in both.values(): 
        assert m.shape == (2, 8, 64, 64)
        torch.testing.assert_close(m.abs().amax((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize("name", TINY)
def test_compare_view_takes_it(name):
    model, video = speaking(name), torch.randn(8, 3, 64, 64)      # in training mode, as it comes from a Learner
    frames = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8)
    view = CompareView(frames, {name: model, "plain": tsn_tiny(num_classes=5)}, range(1, 24, 3), video, classes=list("abcde"))
    panel = view.spec["panels"][1]
    assert panel["title"].startswith(f"{name}: ") and panel["title"].endswith("%") and len(view.spec["clips"]) == 1
    assert [layer["n"] for layer in panel["layers"]] == [8] * (2 if name == "slowfast_tiny" else 1) and model.training


class Noise(Dataset):
    classes = list("abc")
    def __len__(self): return 6
    def __getitem__(self, i): return torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(i)), i % 3


@pytest.mark.parametrize("name", TINY)
def test_learner_and_evaluate_take_it(name):
    dls = DataLoaders.from_datasets(Noise(), Noise(), batch_size=3)
    learner = Learner(get_model(name, num_classes=3), dls, Recipe.short_actions(epochs=1, batch_size=3), device="cpu", progress=False)
    learner.fit()
    assert len(learner.losses) == 2
    result = evaluate(learner.model, dls.valid)
    assert result.logits.shape == (6, 3) and result.logits.isfinite().all() and result.classes == ["a", "b", "c"]


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_can_be_built_and_used(name):
    frames = 32 if name.startswith("slowfast") else 8
    with torch.device("meta"): assert get_model(name, 7, frames).eval()(torch.empty(2, frames, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize("name", list_models())
def test_every_builder_names_its_source(name):
    from stasta_edu.baselines import _table
    doc = _table()[name][0].__doc__
    assert doc and (name.startswith("stasta") or any(word in doc for word in ("et al.", "and Zisserman", "and Tu")))


# ---- what is asked for must fit

@pytest.mark.parametrize("arguments, words", [
    (dict(name="slowfst_r50"), "did you mean slowfast_r50"),
    (dict(name="zzz"), "choose from i3d, i3d_tiny"),
    (dict(name="slowfast_tiny", num_frames=10), "10 frames do not fit: a multiple of 4"),
    (dict(name="slowfast_r50", num_frames=0), "0 frames do not fit"),
    (dict(name="stasta_tiny", num_frames=9), "a multiple of 2"),
    (dict(name="i3d_tiny", num_frames=7), "a multiple of 2"),
    (dict(name="trn_multiscale_tiny", num_frames=1), "at least 2"),
    (dict(name="s3d", num_frames=4), "at least 8"),
    (dict(name="tsn", num_frames=0), "0 frames do not fit"),
    (dict(name="tea", weights="IMAGENET1K_V1"), "Res2Net"),
    (dict(name="msnet_tiny", weights="IMAGENET1K_V1"), "the path of a .pth or .safetensors file"),
    (dict(name="r3d_tiny", weights="KINETICS400_V1"), "none for the tiny form"),
    (dict(name="r3d_18", weights="IMAGENET1K_V1"), "choose KINETICS400_V1"),
    (dict(name="msnet_tiny", after="layer9"), "after='layer9'"),
    (dict(name="i3d_tiny", block="wide"), "unknown block 'wide'"),
])
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as caught: get_model(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("video, error, words", [
    (torch.zeros(8, 3, 64, 64), ValueError, "clip[None]"),
    (torch.zeros(1, 3, 8, 64, 64), ValueError, "(B, T, 3, H, W)"),
    (torch.zeros(1, 8, 3, 64, 64, dtype=torch.uint8), TypeError, "float frames"),
    (torch.full((1, 8, 3, 64, 64), float("nan")), ValueError, "NaN"),
])
def test_bad_videos_are_named(name, video, error, words):
    with pytest.raises(error) as caught: get_model(name, num_classes=2).eval()(video)
    assert words in str(caught.value)


@pytest.mark.parametrize("name, frames, words", [("slowfast_tiny", 6, "sees every 4th"), ("i3d_tiny", 5, "multiple of 2"), ("trn_multiscale_tiny", 6, "built for 8 frames, got 6")])
def test_frames_that_do_not_fit_are_named_in_use_too(name, frames, words):
    with pytest.raises(ValueError) as caught: get_model(name, num_classes=2).eval()(torch.zeros(1, frames, 3, 32, 32))
    assert words in str(caught.value)


# ---- weights

def test_weights_for_another_depth_are_refused(tmp_path):
    path = saved(torchvision.models.resnet18(), tmp_path / "resnet18.pth")
    for name in ("i3d", "msnet", "tea", "slowfast_r50"):
        with pytest.raises(ValueError, match="Are they for another network"): get_model(name, num_frames=8, weights=path)


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with mock.patch("torchvision.models._api.load_state_dict_from_url", side_effect=URLError("no route to host")):
        with pytest.raises(FileNotFoundError, match="no route to host"): get_model("i3d", weights="IMAGENET1K_V1")
        with pytest.raises(FileNotFoundError, match="no route to host"): get_model("r3d_18", weights="KINETICS400_V1")


@pytest.mark.parametrize("name", ["msnet_resnet18", "tcm_resnet18", "tdn_resnet18", "trn_multiscale_resnet18"])
def test_picture_weights_arrive_and_the_classifier_starts_quiet(name, tmp_path):
    theirs = with_norms(torchvision.models.resnet18())
    path = tmp_path / "resnet18.safetensors"
    save_file(theirs.state_dict(), path)
    model = get_model(name, 5, weights=path)
    own = model.state_dict()
    assert all(torch.equal(own[key], w) for key, w in theirs.state_dict().items() if not key.startswith("fc."))
    assert model.fc.weight.std() < 0.002 and not model.fc.bias.any()


def test_tea_loads_a_res2net_file(tmp_path):
    theirs = {key: torch.randn_like(w) if w.is_floating_point() else w for key, w in get_model("tea_tiny", 5).state_dict().items()}
    torch.save({key: w for key, w in theirs.items() if ".me." not in key and ".shifts." not in key}, tmp_path / "res2net.pth")
    own = get_model("tea_tiny", 5, weights=tmp_path / "res2net.pth").state_dict()
    assert torch.equal(own["layer2.0.convs.1.weight"], theirs["layer2.0.convs.1.weight"])


@pytest.mark.parametrize("name, kind", [("msnet_tiny", MSNet), ("i3d_tiny", ResNet3d), ("slowfast_tiny", SlowFast)])
def test_saved_and_built_again(name, kind, tmp_path):
    model, video = speaking(name).eval(), torch.randn(1, 8, 3, 48, 48)
    model.save_pretrained(tmp_path)
    assert torch.equal(kind.from_pretrained(tmp_path).eval()(video), model(video))


# ---- oracles

def test_inflation_by_hand():
    w = torch.tensor([[[[3.]]], [[[6.]]]])                                    # (2, 1, 1, 1)
    assert inflate(w, (2, 1, 3, 1, 1)).flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert inflate(w, (2, 2, 1, 1, 1)).flatten().tolist() == [3, 0, 6, 0]
    for shape in ((3, 1, 3, 1, 1), (2, 1, 3, 3, 1), (2, 1, 3), (2, 0, 1, 1, 1)): assert inflate(w, shape) is None


@pytest.mark.parametrize("name, kw", [("i3d_tiny", {}), ("nl_i3d_tiny", {}), ("slow_tiny", {}), ("slowfast_tiny", dict(widths=(16, 32, 64, 128)))])
def test_a_boring_video_is_a_photograph(name, kw, tmp_path):
    theirs, picture = with_norms(tsn_tiny(num_classes=5)), torch.randn(2, 3, 48, 40)
    model = get_model(name, 5, 48, weights=saved(theirs, tmp_path / "tiny.pth"), **kw).eval()
    boring = picture[:, None].expand(-1, 48, -1, -1, -1)                      # (2, T, 3, H, W)
    features = model.features(boring)[0] if name == "slowfast_tiny" else Trunk3d.forward(model, boring.transpose(1, 2))
    oracle = theirs.features(picture[:, None])                                # (2, C, h, w)
    torch.testing.assert_close(features[:, :, features.shape[2] // 2], oracle, atol=1e-4, rtol=1e-4)


def test_motion_adds_exactly_the_published_parameters():
    params = {name: model_cost(name)[0] for name in ("tsm", "msnet", "tcm")}
    assert (params["msnet"] - params["tsm"], params["tcm"] - params["tsm"]) == (70_905, 71_163)


@pytest.mark.parametrize("name", ["msnet_tiny", "tcm_tiny"])
def test_without_its_motion_it_is_tsm(name):
    model, plain, video = get_model(name, 5).eval(), get_model("tsm_tiny", 5).eval(), torch.randn(2, 8, 3, 64, 64)
    plain.load_state_dict({key: w for key, w in model.state_dict().items() if not key.startswith("motion.")})
    assert not torch.equal(model(video), plain(video))
    last = [m for m in model.motion.refine.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    torch.testing.assert_close(model(video), plain(video))


def test_slow_tempo_of_tcm_adds_up_small_steps():
    picture = torch.randn(1, 1, 16, 14, 14).abs()
    clip = torch.cat([picture.roll(t, -1) for t in range(4)], 1)              # one pixel a frame to the right
    block, seen = TempoCorrelation(16, 16, radius=4, num_frames=4).eval(), []
    block.reduce = nn.Identity()
    block.refine.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(clip)
    flow = seen[0][:, :, 5:9, 5:9].mean((2, 3))                               # (T, 6): dx dx, dy dy, conf conf
    expected = torch.tensor([[1, 1, 0, 0], [1, 2, 0, 0], [1, 3, 0, 0], [1, 3, 0, 0]]) / 4
    torch.testing.assert_close(flow[:, :4], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(flow[:, 4:], torch.ones(4, 2), atol=0.01, rtol=0)


def test_neighbour_differences_by_hand():
    video = torch.tensor([0., 1, 10]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1)
    assert neighbour_differences(video)[0, :, ::3, 0, 0].tolist() == [[0, 0, 1, 9], [0, 1, 9, 0], [1, 9, 0, 0]]


def test_tdn_without_differences_is_torchvisions_resnet():
    theirs, model = with_norms(torchvision.models.resnet18()), get_model("tdn_resnet18", 5, short=0.).eval()
    model.load_state_dict({key: w for key, w in theirs.state_dict().items() if not key.startswith("fc.")}, strict=False)
    for name, m in model.named_modules():
        if name.endswith(".look"): nn.init.zeros_(m.expand[1].weight)         # sigmoid(0) - 1/2
        if name.endswith(".shift"): m.conv.weight.data = torch.tensor([0., 1, 0]).expand_as(m.conv.weight).clone()
    picture = torch.randn(2, 3, 64, 96)
    oracle = nn.Sequential(*list(theirs.children())[:-2])(picture)
    torch.testing.assert_close(model.features(picture[None]), oracle, atol=1e-4, rtol=1e-4)


def test_a_tea_block_by_plain_steps():
    block = with_norms(get_model("tea_tiny", 5, layers=(1, 2, 1, 1)).layer2[1])
    nn.init.zeros_(block.me.expand[1].weight), nn.init.zeros_(block.me.expand[1].bias)   # nothing is excited
    x, T = torch.randn(6, block.conv1.in_channels, 8, 8), 3
    z = F.relu(block.bn1(block.conv1(x))).chunk(4, 1)
    one = F.relu(block.bns[0](block.convs[0](z[0])))                                     # shifts 0 to 2 begin as no shift
    two = F.relu(block.bns[1](block.convs[1](z[1] + one)))
    three = F.relu(block.bns[2](block.convs[2](z[2] + two)))
    last, half = z[3].unflatten(0, (2, T)), z[3].shape[1] // 2
    four = torch.zeros_like(last)
    four[:, :-1, :half], four[:, 1:, half : 2 * half] = last[:, 1:, :half], last[:, :-1, half : 2 * half]
    if z[3].shape[1] % 2: four[:, :, -1] = last[:, :, -1]
    oracle = F.relu(block.bn3(block.conv3(torch.cat([one, two, three, four.flatten(0, 1)], 1))) + x)
    torch.testing.assert_close(block(x, T), oracle, atol=1e-5, rtol=1e-5)


def test_non_local_by_a_loop():
    block, x = with_norms(NonLocal(4)), torch.randn(1, 4, 3, 4, 4)
    places = F.max_pool3d(x, (1, 2, 2)).flatten(2)[0].T                                  # (THW/4, 4)
    def line(layer, v): return layer.weight.view(layer.out_channels, -1) @ v + layer.bias
    out = torch.empty_like(x)
    for t in range(3):
        for i in range(4):
            for j in range(4):
                q = line(block.theta, x[0, :, t, i, j])
                attention = torch.stack([q @ line(block.phi, p) for p in places]).softmax(0)
                out[0, :, t, i, j] = line(block.out, sum(a * line(block.g, p) for a, p in zip(attention, places)))
    torch.testing.assert_close(block(x), x + block.norm(out), atol=1e-5, rtol=1e-5)


def test_slowfast_that_hears_nothing_of_the_fast_is_slow():
    model, video = with_norms(get_model("slowfast_tiny", 5)), torch.randn(2, 8, 3, 64, 64)
    for join in model.joins: nn.init.zeros_(join[1].weight), nn.init.zeros_(join[1].bias)
    slow = get_model("slow_tiny", 5, 2, widths=(20, 40, 80, 160)).eval()
    own = slow.state_dict()
    slow.load_state_dict({key: w[:, : own[key].shape[1]] if w.ndim > 1 else w for key, w in model.slow.state_dict().items()}, strict=False)
    oracle = Trunk3d.forward(slow, video[:, ::4].transpose(1, 2))
    torch.testing.assert_close(model.features(video)[0], oracle, atol=1e-5, rtol=1e-5)
    assert model.features(video)[1].shape == (2, model.fast.sizes[-1], 8, *oracle.shape[-2:])


def test_trn_of_two_frames_is_one_relation():
    model, video = get_model("trn_multiscale_tiny", 5, 2).eval(), torch.randn(3, 2, 3, 48, 48)
    a, b = (model.fc(model.features(video[:, t : t + 1]).mean((2, 3))) for t in (0, 1))
    torch.testing.assert_close(model(video), model.relations[0](torch.cat([a, b], 1)), atol=1e-5, rtol=1e-5)


def test_trn_draws_in_training_and_not_in_testing():
    model, video = get_model("trn_multiscale_tiny", 5, dropout=0.), torch.randn(2, 8, 3, 32, 32)
    assert torch.equal(model.eval()(video), model(video))
    x = torch.randn(16, 128, 4, 4)
    answers = [(torch.manual_seed(s), model.train().classify(x, 8))[1] for s in (0, 0, 1)]
    assert torch.equal(answers[0], answers[1]) and not torch.allclose(answers[0], answers[2])


@pytest.mark.parametrize("name, size", [("r3d_18", (8, 32, 40)), ("r2plus1d_18", (8, 32, 40)), ("s3d", (16, 224, 224))])
def test_coats_change_nothing_of_torchvisions_networks(name, size, tmp_path):
    theirs = getattr(torchvision.models.video, name)(num_classes=7).eval()
    model = get_model(name, 7, size[0], weights=saved(theirs, tmp_path / "net.pth")).eval()
    head = theirs.fc if hasattr(theirs, "fc") else theirs.classifier[1]
    model.fc.load_state_dict(dict(weight=head.weight.flatten(1), bias=head.bias))
    video = torch.randn(1, size[0], 3, *size[1:])
    with torch.no_grad(): torch.testing.assert_close(model(video), theirs(video.transpose(1, 2)), atol=1e-5, rtol=1e-4)


def test_pictures_weights_of_tsn_are_the_same_as_before(tmp_path):
    path = saved(torchvision.models.resnet18(), tmp_path / "resnet18.pth")
    a, b = get_model("tsn_resnet18", 5, weights=path).eval(), tsn_resnet18(5, weights=path).eval()
    video = torch.randn(1, 2, 3, 64, 64)
    assert torch.equal(a.features(video), b.features(video))
