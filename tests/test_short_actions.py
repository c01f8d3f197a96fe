"ShortActions: the ground truth is true, nothing but time tells the classes apart, and an export is whole or can be resumed."
import csv
import json
import os
import pickle
import zlib
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stasta_edu import short_actions
from stasta_edu.short_actions import FAMILIES, FPS, LENGTHS, LONGEST, SHORTEST, SPLITS, STORY, VERSION, CachedClips, ShortActions, ShortTermAction, endless
from stasta_edu.video import probe, read_frames


@pytest.fixture(scope="module")
def clips():
    "Two clips of each class with their ground truth."
    ds = ShortActions("validation", length=24)
    return [ds.clip(i) for i in range(24)]


# what a data set promises

def test_items():
    ds = ShortActions("train", length=13, num_frames=5, size=48)
    video, label = ds[12]
    assert video.shape == (5, 3, 48, 48) and video.dtype == torch.uint8 and label == 0 and len(ds) == 13
    assert ds.classes == [name for names in FAMILIES.values() for name in names] and len(ds.families) == 12
    assert torch.equal(ds[-1][0], video)
    assert ShortActions("train", transform=lambda v: v.float().mean())[0][0].ndim == 0
    assert len(list(ShortActions("test", length=3))) == 3  # iteration ends
    with pytest.raises(IndexError, match="clip 13"): ds[13]


def test_the_same_clip_whatever_the_order_and_the_worker():
    ds = ShortActions("train", length=16)
    forward = [ds[i][0] for i in range(16)]
    backward = [ShortActions("train", length=16)[i][0] for i in reversed(range(16))][::-1]
    workers = torch.cat([v for v, _ in DataLoader(ds, batch_size=3, num_workers=2)])
    assert torch.equal(torch.stack(forward), torch.stack(backward)) and torch.equal(torch.stack(forward), workers)
    torch.manual_seed(5), np.random.seed(5)
    assert torch.equal(ds[7][0], forward[7])  # no global state
    assert torch.equal(ShortActions("train", length=8)[7][0], forward[7])  # nor the length


def test_splits_and_seeds_share_no_clip():
    first = lambda **kw: {np.asarray(ShortActions(length=36, **kw)[i][0][0]).tobytes() for i in range(36)}
    sets = [first(split=s, seed=seed) for s in SPLITS for seed in (0, 1)]
    assert len(set.union(*sets)) == 36 * len(sets)


@pytest.mark.parametrize("split", SPLITS)
def test_sampled_frames_are_frames_of_the_clip(split):
    ds = ShortActions(split, length=12, size=40)
    for i in range(12):
        clip = ds.clip(i)
        assert np.array_equal(ds[i][0].permute(0, 2, 3, 1).numpy(), clip.frames[ds.frame_indices(i, len(clip.frames))])
        assert SHORTEST <= len(clip.frames) <= LONGEST and clip.label == ds[i][1]


@pytest.mark.parametrize("size", (32, 97, 224))
def test_another_size_shows_the_same_scene(size):
    small, other = ShortActions("test", size=64)[5][0], ShortActions("test", size=size)[5][0]
    other = torch.nn.functional.interpolate(other.float(), (64, 64), mode="bilinear", antialias=True)
    assert (small.float() - other).abs().mean() < 8


@pytest.mark.parametrize("kw, text", [
    (dict(split="val"), "split must be one of train, validation, test, not 'val'"),
    (dict(family="speed"), "family must be one of all, tempo, importance, order, story, not 'speed'"),
    (dict(size=31), "size must be at least 32"),
    (dict(num_frames=SHORTEST + 1), f"the shortest clips have {SHORTEST} frames"),
    (dict(num_frames=0), "num_frames must be 1 to"),
    (dict(family="importance", num_frames=49), "num_frames must be 1 to 48, not 49: the shortest clips have 48 frames"),
    (dict(family="story", num_frames=241), "num_frames must be 1 to 240"),
    (dict(length=-1), "length must be"),
    (dict(seed=-1), "seed must be"),
])
def test_wrong_arguments(kw, text):
    with pytest.raises(ValueError, match=text): ShortActions(**kw)


# the ground truth is true

def warped(frame, displacement):
    "`frame` sampled where each pixel goes: (H, W, 3)."
    h, w = displacement.shape[1:]
    y, x = np.mgrid[0:h, 0:w] + displacement[::-1]
    grid = torch.from_numpy(np.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1], -1)).float()
    image = torch.from_numpy(frame).permute(2, 0, 1).float()
    return torch.nn.functional.grid_sample(image[None], grid[None], align_corners=False, padding_mode="border")[0].permute(1, 2, 0).numpy()


def test_displacement_carries_each_frame_onto_the_next(clips):
    for clip in clips:
        errors = []
        for t in range(len(clip.frames) - 1):
            moving = (clip.masks[t] > 0) & ~clip.occluded[t] & (np.hypot(*clip.displacement[t]) > 0.7)
            before = np.abs(clip.frames[t + 1].astype(float) - clip.frames[t])[moving].mean(-1)
            after = np.abs(warped(clip.frames[t + 1], clip.displacement[t]) - clip.frames[t])[moving].mean(-1)
            errors.append(np.stack([before, after], 1))
        before, after = np.concatenate(errors).T
        assert len(before) > 300 and after.mean() < 0.5 * before.mean() and np.median(after) < 6, (clip.class_name, before.mean(), after.mean())


def test_background_moves_with_the_camera(clips):
    for clip in clips[::5]:
        ground = [d[:, m == 0] for d, m in zip(clip.displacement, clip.masks)]
        assert max(np.ptp(d, axis=1).max() for d in ground) < 1e-5


def test_occluded_pixels_are_lost(clips):
    for clip in clips[::3]:
        assert clip.occluded.mean() < 0.1
        h, w = clip.masks.shape[1:]
        for t in range(0, len(clip.occluded), 7):
            y, x = np.mgrid[0:h, 0:w] + clip.displacement[t][::-1]
            outside = (x < -1) | (y < -1) | (x > w) | (y > h)
            assert clip.occluded[t][outside].all()


def test_masks_agree_with_the_picture():
    ds = ShortActions("validation", length=24)
    for i in range(0, 24, 2):
        scene, clip = ds.scene(i), ds.clip(i)
        for number, actor in enumerate(clip.actors, 1):
            without = replace(scene, layers=[layer for layer in scene.layers if layer.actor != actor])
            for t in (9, 20):
                changed = np.abs(without.draw(t).astype(int) - clip.frames[t]).max(-1)
                mask = clip.masks[t] == number
                if mask.sum() > 40: assert (changed[mask] > 3).mean() > 0.85, (clip.class_name, actor)
                y, x = np.nonzero(mask)
                near = np.zeros_like(np.pad(mask, 1))
                for dy, dx in np.ndindex(3, 3): near[y + dy, x + dx] = True
                assert (changed[~near[1:-1, 1:-1]] > 8).sum() <= 0.1 * mask.sum() + 20, (clip.class_name, actor)  # soft edges are one pixel wide


def test_actions_are_in_the_picture():
    for family in LENGTHS:
        ds = ShortActions("test", family=family, size=32, length=4)
        for scene in (ds.scene(i) for i in range(4)):
            assert any(a.decisive for a in scene.actions)
            for a in scene.actions:
                assert isinstance(a, ShortTermAction) and 0 <= a.start < a.end <= len(scene) and a.speed >= 0
                assert a.actor in {layer.actor for layer in scene.layers}


def test_actions_are_as_fast_as_they_say(clips):
    "The displacement of an actor's visible pixels is affine in their place; at the middle of its sprite it must be the speed."
    ds, compared = ShortActions("validation", length=24), 0
    for i, clip in enumerate(clips):
        scene, where = ds.scene(i), np.mgrid[0:64, 0:64][::-1] + 0.5
        for a in clip.actions:
            number, seen = clip.actors.index(a.actor) + 1, []
            if not a.decisive or min((clip.masks[t] == number).sum() for t in range(a.start, a.end - 1)) < 40: continue  # under the hand
            [layer] = [layer for layer in scene.layers if layer.actor == a.actor]
            for t in range(a.start, a.end - 1):
                mask = clip.masks[t] == number
                place = np.column_stack([where[:, mask].T, np.ones(mask.sum())])
                affine = np.linalg.lstsq(place, clip.displacement[t][:, mask].T, rcond=None)[0]
                middle = layer.poses[t, :, :2] @ (np.array(layer.sprite.image.size) / 2) + layer.poses[t, :, 2]
                seen.append(np.hypot(*(np.append(middle, 1) @ affine)))
            assert abs(np.mean(seen) - a.speed) < 1e-3, (clip.class_name, a, np.mean(seen))
            compared += 1
    assert compared > 20


def test_speed_is_in_pixels():
    small, large = (ShortActions("test", size=s).scene(3).actions for s in (64, 128))
    assert [a.start for a in small] == [a.start for a in large]
    assert np.allclose([2 * a.speed for a in small], [a.speed for a in large])


# frozen

@pytest.mark.parametrize("split, family, size, seed, i, total", [
    ("train", "tempo", 64, 0, 1, "a69d4e71"), ("train", "importance", 64, 0, 5, "439a5e0b"), ("validation", "order", 64, 0, 3, "4678d5d5"),
    ("test", "all", 97, 0, 7, "8fcaebe7"), ("train", "all", 32, 3, 100, "d6aa399f"), ("test", "story", 40, 1, 2, "102087ca"), ("test", "all", 224, 0, 9, "4c0741da"),
])
def test_a_clip_and_its_annotations_never_change(split, family, size, seed, i, total):
    "If this fails, clips differ from those of all saved results: undo the change, or call it ShortActions-v2."
    assert VERSION == "ShortActions-v1" and ShortActions(split, family, size=size, seed=seed).clip(i).checksum() == total


@pytest.mark.parametrize("split, total", [("train", "69df1223"), ("validation", "d62a5d3d"), ("test", "aef3a3b2")])
def test_what_a_model_sees_never_changes(split, total):
    ds = ShortActions(split)
    assert f"{zlib.crc32(b''.join(ds.render(i).numpy().tobytes() for i in range(12))):08x}" == total


@pytest.mark.parametrize("change", [
    lambda c: c.frames.__setitem__((3, 5, 7, 1), c.frames[3, 5, 7, 1] ^ 1), lambda c: c.masks.__setitem__((0, 0, 0), 9), lambda c: c.displacement.__iadd__(0.001),
    lambda c: c.occluded.__setitem__((0, 0, 0), ~c.occluded[0, 0, 0]), lambda c: c.actions.__setitem__(0, replace(c.actions[0], speed=c.actions[0].speed + 1e-6)),
    lambda c: c.intervals.clear(), lambda c: c.actors.reverse(),
])
def test_the_checksum_tolerates_nothing(change):
    clip = ShortActions("test", size=32).clip(4)
    clip.frames, clip.masks = clip.frames.copy(), clip.masks.copy()
    before = clip.checksum()
    change(clip)
    assert clip.checksum() != before


# nothing but time tells the classes apart

@pytest.mark.parametrize("n_cycles", (1, 2, 3, 4))
def test_as_much_time_in_each_state_however_often_it_changes(n_cycles):
    rng = np.random.default_rng(n_cycles)
    for up, down in ((0.3, 0.3), (0.1, 0.5)):
        times, states, moves = endless(rng, n_cycles, up, down)
        s = np.interp((np.arange(20000) + 0.5) / 20000, times, states)
        assert np.allclose([(s == 0).mean(), (s == 1).mean()], 0.2, atol=1e-3)
        assert np.allclose(np.histogram(s[(s > 0) & (s < 1)], 10, (0, 1))[0] / 20000, 0.06, atol=1e-3)
        assert times[0] <= 0 and times[-1] >= 1 and (np.diff(times) > 0).all() and len(moves) == 6 * n_cycles
        assert all(np.isclose(end - start, (up if to else down) / n_cycles) for start, end, to in moves)


@pytest.mark.parametrize("n_cycles", (1, 2, 4))
def test_no_moment_is_special(n_cycles):
    "At any time the state has the same distribution, whatever the script."
    clock = np.array([0.0, 0.13, 0.5, 0.87, 1.0])
    s = np.stack([np.interp(clock, *endless(np.random.default_rng(k), n_cycles, 0.4, 0.2)[:2]) for k in range(3000)])
    error = 4 * (0.25 / 3000) ** 0.5
    assert np.allclose((s == 0).mean(0), 0.2, atol=error) and np.allclose((s == 1).mean(0), 0.2, atol=error)
    assert np.allclose(((s > 0) & (s < 0.5)).mean(0), 0.3, atol=error)


@lru_cache
def appearance(family, n, split="train"):
    "What can be counted without looking at time, in colour: a row for each clip."
    ds, rows = ShortActions(split, family=family, length=n), []
    for i in range(n):
        scene = ds.scene(i)
        frames = scene.frames(np.linspace(0, len(scene) - 1, 8).round().astype(int)) / 255.0  # (T, H, W, 3)
        grey = frames.mean(-1).reshape(8, 16, 4, 16, 4).mean((2, 4)).reshape(8, -1)            # (T, 256) thumbnails
        colour = frames.reshape(8, 4, 16, 4, 16, 3).mean((2, 4)).reshape(8, -1)                # (T, 48)
        first = len(scene) / LONGEST, grey.mean(), grey.std()
        rows.append(np.concatenate([first, grey.mean(0), grey.std(0), colour.mean(0), colour.std(0), colour.max(0), colour.min(0)]))
    return np.stack(rows).astype(np.float32), np.arange(n) % 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_probe_on_appearance_stays_near_chance(family):
    (x, y), (x_test, y_test) = appearance(family, 400), appearance(family, 240, "test")
    mean, std = x.mean(0), x.std(0) + 1e-3
    x, x_test = ((v - mean) / std for v in (x, x_test))
    x, x_test = (np.concatenate([v, np.ones((len(v), 1))], 1) for v in (x, x_test))
    best = 0
    for ridge in (10, 100, 1000):
        w = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ np.eye(4)[y])
        best = max(best, ((x_test @ w).argmax(1) == y_test).mean())
    assert best < 0.36, f"{best:.1%} where chance is 25%"  # 0.25 + 4 standard errors of 240 clips


@pytest.mark.parametrize("family", FAMILIES)
def test_class_means_agree(family):
    x, y = appearance(family, 400)
    x = np.concatenate([x[:, :3], x[:, 3:259].reshape(-1, 4, 4, 4, 4).mean((2, 4)).reshape(-1, 16)], 1)  # length, light; a 4 x 4 mean frame
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    error = np.stack([x[y == c].std(0) / np.sqrt((y == c).sum()) for c in range(4)])
    z = (means - means.mean(0)) / np.maximum(error, 1e-6)
    assert np.abs(z).max() < 4 and (z ** 2).mean() < 2, np.abs(z).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_acts_is_in_the_same_places(family):
    "Where the deciding actor is, over all frames: mean, spread and the share of frames in which it is seen."
    ds, stats, labels = ShortActions("train", family=family, length=160), [], []
    for i in range(160):
        scene = ds.scene(i)
        actor = next(a.actor for a in scene.actions if a.decisive)
        numbers = [n for n, layer in enumerate(scene.layers, 1) if layer.actor == actor]
        at = [np.argwhere(np.isin(scene.owners(t), numbers)) for t in np.linspace(1, len(scene) - 2, 12).round().astype(int)]
        centres, areas = np.array([a.mean(0) for a in at if len(a)]), np.array([len(a) for a in at])
        stats.append([*centres.mean(0), *centres.std(0), areas.mean(), areas.std(), (areas > 40).mean()])
        labels.append(ds.label(i))
    stats, labels = np.array(stats), np.array(labels)
    means = np.stack([stats[labels == c].mean(0) for c in range(4)])
    z = (means - means.mean(0)) / (stats.std(0) / np.sqrt(40) + 1e-6)
    assert np.abs(z).max() < 4.5, z.round(1)


# stories

def test_a_story_has_labels_with_start_and_end():
    ds, said = ShortActions("train", family="story", size=32, length=30), set()
    assert ds.classes == list(STORY) and len(STORY) >= 8
    for i in range(30):
        scene, target = ds.scene(i), ds.target(i)
        assert 20 * FPS <= len(scene) <= 30 * FPS and len(scene.intervals) == sum(a.decisive for a in scene.actions) > 1
        assert {k for k, _, _ in scene.intervals} == set(ds.label(i)) == set(target.nonzero()[:, 0].tolist())
        for k, start, end in scene.intervals:
            assert 0 <= start < end <= len(scene) / FPS + 1e-6
        order = [k for k, _, _ in scene.intervals]
        if 1 in order: assert order.index(1) < order.index(3)                      # opened before closed
        if 4 in order: assert order.index(1) < order.index(2) < order.index(4)     # taken before drunk from
        said |= set(order)
    assert said == set(range(len(STORY)))


def test_the_ground_truth_of_a_story():
    clip = ShortActions("test", family="story", size=48).clip(0)
    number, errors = clip.actors.index("bottle") + 1, []
    for t in range(len(clip.frames) - 1):
        moving = (clip.masks[t] == number) & ~clip.occluded[t] & (np.hypot(*clip.displacement[t]) > 0.5)
        after = np.abs(warped(clip.frames[t + 1], clip.displacement[t]) - clip.frames[t])[moving].mean(-1)
        before = np.abs(clip.frames[t + 1].astype(float) - clip.frames[t])[moving].mean(-1)
        errors.append(np.stack([before, after], 1))
    before, after = np.concatenate(errors).T
    assert len(before) > 100 and after.mean() < 0.6 * before.mean()
    assert isinstance(clip.label, tuple) and clip.family == "story" and "Opening a fridge" in clip.class_name


def test_stories_as_charades(tmp_path):
    ds = ShortActions("train", family="story", size=32, length=2)
    ds.write_videos(tmp_path, "charades")
    with open(tmp_path / "Charades_v1_train.csv", newline="") as file: rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        spans = [span.split(" ") for span in row["actions"].split(";")]
        assert [(int(c[1:]), float(a), float(b)) for c, a, b in spans] == [(k, round(a, 2), round(b, 2)) for k, a, b in ds.scene(i).intervals]
    with pytest.raises(ValueError, match="several labels.*write 'charades'"): ds.write_videos(tmp_path / "other", "something_v2")


# kept in memory

def test_cached_items_are_the_items(tmp_path):
    ds = ShortActions("train", length=6, size=32, num_frames=4, transform=lambda v: v.float())
    kept = ds.cached(tmp_path)
    assert all(torch.equal(kept[i][0], ds[i][0]) and kept[i][1] == ds[i][1] for i in range(-6, 6)) and len(kept) == 6
    with pytest.raises(IndexError): kept[6]
    [path] = tmp_path.iterdir()
    stamp = path.stat().st_mtime_ns
    ds.cached(tmp_path)
    assert path.stat().st_mtime_ns == stamp  # not again
    again = pickle.loads(pickle.dumps(ShortActions("train", length=6, size=32, num_frames=4).cached(tmp_path)))
    assert isinstance(again, CachedClips) and torch.equal(again[3][0].float(), ds[3][0])
    for other in (dict(seed=1), dict(size=33), dict(num_frames=5), dict(length=5), dict(family="order")):
        ShortActions("train", **{**dict(length=6, size=32, num_frames=4), **other}).cached(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    path.write_bytes(path.read_bytes()[:-1000])  # cut off
    assert torch.equal(ds.cached(tmp_path)[5][0], ds[5][0])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file.*cannot be written"): ds.cached(tmp_path / "file" / "cache")
    story = ShortActions("train", family="story", length=2, size=32)
    assert torch.equal(story.cached(tmp_path)[1][1], story[1][1])


def test_an_interrupted_cache_is_not_taken_for_whole(tmp_path, monkeypatch):
    ds, render = ShortActions("train", length=3, size=32), ShortActions.render

    def broken(self, i):
        if i == 2: raise KeyboardInterrupt
        return render(self, i)
    monkeypatch.setattr(ShortActions, "render", broken)
    with pytest.raises(KeyboardInterrupt): ds.cached(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert len(ds.cached(tmp_path)) == 3


# written to disk

def test_export(tmp_path):
    ds = ShortActions("test", family="order", length=6, seed=3)
    place = ds.write_videos(tmp_path)
    assert place == tmp_path / "test" and not (place / "unfinished.json").exists()
    notes = json.loads((place / "annotations.json").read_text())
    assert (notes["version"], notes["split"], notes["seed"], notes["classes"]) == (VERSION, "test", 3, ds.classes)
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*.mp4")) == sorted(c["path"] for c in notes["clips"])
    assert sorted(p.name for p in place.iterdir() if p.is_dir()) == [ds.path_of(i).parent.name for i in range(4)]  # sorted = class order
    for i, note in enumerate(notes["clips"]):
        clip = ds.clip(i)
        assert note["label"] == clip.label and [ShortTermAction(**a) for a in note["actions"]] == clip.actions
        assert probe(place / note["path"]).num_frames == len(clip.frames) == note["frames"]
        assert np.abs(read_frames(place / note["path"], range(note["frames"])).astype(int) - clip.frames).mean() < 6


def test_an_interrupted_export_goes_on(tmp_path, monkeypatch):
    ds, written = ShortActions("train", length=5, size=32), []

    def write_three(path, *args):
        if len(written) == 3: raise OSError(28, "No space left on device")
        written.append(path)
        return write_video(path, *args)
    write_video = short_actions.write_video
    monkeypatch.setattr(short_actions, "write_video", write_three)
    with pytest.raises(OSError, match="No space"): ds.write_videos(tmp_path)
    assert not (tmp_path / "train" / "annotations.json").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "train").rglob("*.mp4")}
    assert len(before) == 3
    monkeypatch.setattr(short_actions, "write_video", write_video)
    ds.write_videos(tmp_path)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "train").rglob("*.mp4")}
    assert len(after) == 5 and before.items() <= after.items()
    ds.write_videos(tmp_path)  # once more: nothing to do
    assert after == {p: p.stat().st_mtime_ns for p in (tmp_path / "train").rglob("*.mp4")}


def test_an_export_leaves_others_alone(tmp_path):
    ShortActions("train", length=2, size=32).write_videos(tmp_path)
    kept = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="another export.*seed=0 there, 1 here"): ShortActions("train", length=2, size=32, seed=1).write_videos(tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "thesis.txt").write_text("years of work")
    with pytest.raises(OSError, match="is not empty"): ShortActions("test", length=2, size=32).write_videos(tmp_path)
    assert (tmp_path / "test" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("format", ("something_v1", "something_v2", "charades"))
def test_the_publishers_layouts(tmp_path, format):
    "Names and lists as the publishers have them, read here with nothing but the standard library."
    sets = {s: ShortActions(s, length=13 if s == "train" else 2, size=32) for s in SPLITS if format != "charades" or s != "validation"}
    for ds in sets.values(): assert ds.write_videos(tmp_path, format) == tmp_path
    ids = [ds.path_of(i, format).stem for ds in sets.values() for i in range(len(ds))]
    assert len(set(ids)) == len(ids)
    for split, ds in sets.items():
        names = [ds.path_of(i, format).stem for i in range(len(ds))]
        labels = [ds.classes[ds.label(i)] for i in range(len(ds))]
        frames = [len(ds.scene(i)) for i in range(len(ds))]
        if format == "something_v1":
            assert (tmp_path / "something-something-v1-labels.csv").read_text().splitlines() == sorted(ds.classes)
            rows = (tmp_path / f"something-something-v1-{split}.csv").read_text().splitlines()
            assert rows == (names if split == "test" else [f"{n};{label}" for n, label in zip(names, labels)])
            for name, n in zip(names, frames):
                pictures = sorted(p.name for p in (tmp_path / "20bn-something-something-v1" / name).iterdir())
                assert pictures == [f"{k:05}.jpg" for k in range(1, n + 1)]
        if format == "something_v2":
            numbers = json.loads((tmp_path / "something-something-v2-labels.json").read_text())
            assert numbers == {label: str(k) for k, label in enumerate(sorted(ds.classes))}
            items = json.loads((tmp_path / f"something-something-v2-{split}.json").read_text())
            assert [item["id"] for item in items] == names
            if split == "test": assert all(set(item) == {"id"} for item in items)
            else:
                assert [item["template"].replace("[", "").replace("]", "") for item in items] == labels
                for item in items:
                    text = item["template"].lower()
                    for what in item["placeholders"]: text = text.replace("[something]", what, 1)
                    assert item["label"] == text
            info = probe(tmp_path / "20bn-something-something-v2" / f"{names[0]}.webm")
            assert info.num_frames == frames[0] and info.fps == 12
        if format == "charades":
            classes = dict(line.split(" ", 1) for line in (tmp_path / "Charades_v1_classes.txt").read_text().splitlines())
            with open(tmp_path / f"Charades_v1_{split}.csv", newline="") as file: rows = list(csv.DictReader(file))
            assert ",".join(rows[0]) == "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
            for row, name, label, n in zip(rows, names, labels, frames, strict=True):
                code, start, end = row["actions"].split(" ")
                assert row["id"] == name and len(name) == 5 and classes[code] == label
                assert 0 <= float(start) < float(end) <= float(row["length"]) + 0.01 and abs(float(row["length"]) - n / 12) < 0.01
                assert probe(tmp_path / "Charades_v1" / f"{name}.mp4").num_frames == n


def test_interrupted_folders_of_pictures(tmp_path, monkeypatch):
    ds, done = ShortActions("train", length=3, size=32), []

    def stop_in_the_middle(self, path, *args, **kw):
        if len(done) == 50: raise KeyboardInterrupt
        done.append(path)
        return save(self, path, *args, **kw)
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt): ds.write_videos(tmp_path, "something_v1")
    monkeypatch.undo()
    assert not (tmp_path / "something-something-v1-train.csv").exists()  # no list before all pictures are there
    ds.write_videos(tmp_path, "something_v1")
    for i in range(3): assert len(list((tmp_path / ds.path_of(i, "something_v1")).iterdir())) == len(ds.scene(i))
    assert not [p for p in tmp_path.rglob("*") if "part" in p.name or "unfinished" in p.name]


def test_real_data_is_left_alone(tmp_path):
    (tmp_path / "20bn-something-something-v2").mkdir()
    (tmp_path / "20bn-something-something-v2" / "1.webm").write_text("a real video")
    with pytest.raises(FileExistsError, match="no export of ShortActions"): ShortActions("train", length=2, size=32).write_videos(tmp_path, "something_v2")
    (tmp_path / "something-something-v1-train.csv").write_text("1;a real list")
    with pytest.raises(FileExistsError, match="v1-train.csv"): ShortActions("train", length=2, size=32).write_videos(tmp_path, "something_v1")
    ShortActions("train", family="order", length=2, size=32).write_videos(tmp_path, "charades")
    with pytest.raises(FileExistsError, match="family='order' there, 'tempo' here"):  # one list of classes serves both splits
        ShortActions("test", family="tempo", length=2, size=32).write_videos(tmp_path, "charades")
    assert (tmp_path / "something-something-v1-train.csv").read_text() == "1;a real list" and len(list(tmp_path.iterdir())) == 6


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file.*cannot be written"): ShortActions("train", length=1).write_videos(tmp_path / "file")
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(OSError, match="locked.*cannot be written"): ShortActions("train", length=1).write_videos(tmp_path / "locked")
    with pytest.raises(ValueError, match="format must be one of folder, something_v1, something_v2, charades, not 'avi'"):
        ShortActions("train", length=1).write_videos(tmp_path, format="avi")
    with pytest.raises(ValueError, match="Charades has lists for"): ShortActions("validation", length=1).write_videos(tmp_path, format="charades")
    with pytest.raises(ValueError, match="length is 0"): ShortActions("train", length=0).write_videos(tmp_path)
    with pytest.raises(OSError, match="cannot be written"): ShortActions("train", length=1).write_videos("/proc/nowhere")
