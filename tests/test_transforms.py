"Views of clips: one draw for all frames, the crops of the recipe, flips that keep the label true."
import pytest
import torch
from torchvision.transforms import v2

from stasta_edu.transforms import (IMAGENET_MEAN, IMAGENET_STD, LabelAwareFlip, MultiScaleCrop, ThreeCrops, clip_transform, crop_places, crop_sizes, denormalise,
                                   eval_transform, flip_partners, mirrored, train_transform)

REAL = ["Pulling something from left to right", "Pulling something from right to left", "Pushing something from left to right", "Pushing something from right to left",
        "Turning the camera left while filming something", "Turning the camera right while filming something"]  # the six that have a side, of 174


def test_partners_of_the_real_labels():
    "In the sorted list of 174 these are 86/87, 93/94 and 166/167; the others, without sides, are stood for by fillers that sort between."
    fill = ["A"] * 86 + REAL[:2] + ["Pulling x"] * 5 + REAL[2:4] + ["Pushing x"] * 71 + REAL[4:] + ["Z"] * 6
    names = [name if name in REAL else f"{name} {n:03}" for n, name in enumerate(fill)]
    assert len(names) == 174 and names == sorted(names)
    partners = flip_partners(names)
    assert {n: p for n, p in enumerate(partners) if p != n} == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}


@pytest.mark.parametrize("text, expected", [
    ("Left", "Right"), ("LEFT hand", "RIGHT hand"), ("turning leftwards", "turning rightwards"), ("Leftover", "Leftover"), ("upright, bright, aright", "upright, bright, aright"),
    ("left-handed", "right-handed"), ("left left right", "right right left"), ("", "")])
def test_mirrored_words(text, expected):
    assert mirrored(text) == expected and mirrored(mirrored(text)) == text


def test_one_sided_labels_never_flip():
    flip, video = LabelAwareFlip(["Raising the left hand", "Jumping", "Kicking left", "Kicking right"], p=1), torch.arange(6.).expand(2, 3, 4, 6)
    assert flip.partners == [None, 1, 3, 2]
    assert flip(video, 0)[1] == 0 and torch.equal(flip(video, 0)[0], video)
    assert flip(video, 2)[1] == 3 and torch.equal(flip(video, 2)[0], video.flip(-1))
    assert flip(video, torch.tensor(2))[1] == 3
    several = torch.tensor([1., 1, 0, 0])
    assert torch.equal(flip(video, several)[0], video) and torch.equal(flip(video, several)[1], several)
    assert flip(video, torch.tensor([0., 1, 0, 1]))[1].tolist() == [0, 1, 1, 0]
    assert flip(video, torch.zeros(4))[1].tolist() == [0, 0, 0, 0]


def test_flips_come_as_often_as_asked():
    torch.manual_seed(0)
    video = torch.arange(4.).expand(1, 3, 2, 4)
    for p in (0.0, 0.3, 1.0):
        flip = LabelAwareFlip(["a"], p)
        share = sum(not torch.equal(flip(video, 0)[0], video) for _ in range(1000)) / 1000
        assert abs(share - p) < 0.05


def test_sizes_and_places_of_the_crop():
    assert len(crop_sizes(256)) == 10 and len(set(crop_sizes(256))) == 10
    for h, w in crop_sizes(240):
        places = crop_places(240, 320, h, w)
        assert len(places) == 13
        for top, left in places: assert 0 <= top <= 240 - h and 0 <= left <= 320 - w
    assert crop_places(8, 8, 4, 4) == [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4), (4, 0), (4, 2), (4, 4), (1, 1), (1, 3), (3, 1), (3, 3)]


@pytest.mark.parametrize("height, width", [(48, 64), (64, 48), (33, 33), (240, 320)])
def test_all_frames_are_cut_alike(height, width):
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    for view in (MultiScaleCrop(32), train_transform(32, flip=0.5, jitter=0.2), clip_transform(32, train=True)):
        results = [view(picture.expand(5, -1, -1, -1)) for _ in range(12)]
        for r in results: assert r.shape == (5, 3, 32, 32) and torch.allclose(r, r[:1].expand_as(r))
        assert len({r.float().mean().item() for r in results}) > 3  # and each clip otherwise


def test_a_crop_is_what_torchvision_cuts():
    torch.manual_seed(1)
    video = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    candidates = [v2.functional.resized_crop(video, top, left, h, w, [32, 32], antialias=True) for h, w in crop_sizes(64) for top, left in crop_places(64, 80, h, w)]
    result = MultiScaleCrop(32)(video)
    assert any(torch.equal(result, c) for c in candidates)


def test_testing_views():
    video = torch.randint(0, 256, (4, 3, 256, 340), dtype=torch.uint8)
    centre = eval_transform(224)(video)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(centre, (video[..., 16:240, 58:282].float() / 255 - mean) / std, atol=1e-5)
    three = eval_transform(256, crops=3)(video)
    assert three.shape == (3, 4, 3, 256, 256)
    for crop, left in zip(three, (0, 42, 84)): assert torch.equal(denormalise(crop), video[..., left : left + 256])
    assert eval_transform(224, crops=3, short_side=256)(video).shape == (3, 4, 3, 224, 224)
    assert ThreeCrops(32)(torch.zeros(2, 3, 32, 32)).shape == (3, 2, 3, 32, 32)
    for crops in (0, 2, 10):
        with pytest.raises(ValueError, match="crops must be 1 or 3"): eval_transform(crops=crops)
