"Data sets on their publishers' formats: wrong annotations, broken clips, the index, workers, samples."
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stasta_edu import datasets
from stasta_edu.backbone import tsn_tiny
from stasta_edu.datasets import (AnnotationError, Charades, SomethingV1, SomethingV2, VideoFolder, VideoList, index_clips, list_pictures, read_clip,
                                 read_pictures, write_list, write_samples)
from stasta_edu.training import DataLoaders, Learner, Recipe
from stasta_edu.video import VideoReadError, write_video

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples"
SETS = {"something_v1": (SomethingV1, "validation"), "something_v2": (SomethingV2, "validation"), "charades": (Charades, "test")}


def grey(n=12, level=0, size=(32, 40)):
    "Frame t is grey of brightness level + 4t: the pictures tell their own number."
    return np.stack([np.full((*size, 3), (level + 4 * t) % 256, np.uint8) for t in range(n)])


def shown(frames): return np.rint(np.asarray(frames, float).reshape(len(frames), -1).mean(1) / 4).astype(int).tolist()


def pictures(folder, n, first=1, name="{:05}.jpg"):
    folder.mkdir(parents=True)
    for t, frame in enumerate(grey(n)): Image.fromarray(frame).save(folder / name.format(t + first))
    return folder


@pytest.fixture
def v1(tmp_path):
    for clip, n in (("3", 12), ("10", 20), ("7", 5)): pictures(tmp_path / "20bn-something-something-v1" / clip, n)
    (tmp_path / "something-something-v1-labels.csv").write_text("Turning it right\nClosing it\nTurning it left\n")
    (tmp_path / "something-something-v1-train.csv").write_text("3;Turning it right\n10;Closing it\n7;Turning it left\n")
    return tmp_path


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "20bn-something-something-v2").mkdir()
    for clip, n in (("3", 12), ("10", 20)): write_video(tmp_path / "20bn-something-something-v2" / f"{clip}.webm", grey(n))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "something-something-v2-labels.json").write_text('{"Turning [something] right": "1", "Closing something": "0"}')
    (tmp_path / "labels" / "something-something-v2-train.json").write_text(
        '[\n {"id": "3", "label": "turning a cup right", "template": "Turning [something] right", "placeholders": ["a cup"]},\n'
        ' {"id": "10",\n  "label": "closing it", "template": "Closing [something]"}\n]\n')
    return tmp_path


@pytest.fixture
def charades(tmp_path):
    pictures(tmp_path / "Charades_v1_rgb" / "ABCDE", 240, name="ABCDE-{:06}.jpg")  # 10 s at 24 fps
    pictures(tmp_path / "Charades_v1_rgb" / "FGHIJ", 48, name="FGHIJ-{:06}.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "Charades_v1_classes.txt").write_text("c000 Holding\nc001 Opening a door\nc002 Sitting\n")
    for split in ("train", "test"):
        (tmp_path / "annotations" / f"Charades_v1_{split}.csv").write_text(
            'id,subject,descriptions,actions,length\nABCDE,X,"a text, with\na line break",c001 8.00 9.50;c000 0.00 3.00,10.0\nFGHIJ,Y,none,,2.0\n')
    return tmp_path


def test_v1_is_read_as_published(v1):
    ds = SomethingV1(v1, "train", train=False)
    assert ds.classes == ["Closing it", "Turning it left", "Turning it right"]  # sorted, not in file order
    assert ds.targets.tolist() == [2, 0, 1] and [p.name for p, _ in ds.items] == ["3", "10", "7"]
    video, label = ds[1]
    assert (video.shape, video.dtype, label) == ((8, 3, 32, 40), torch.uint8, 0)
    assert shown(video.numpy()) == ds.frame_indices(1).tolist() == [1, 3, 6, 8, 11, 13, 16, 18]
    assert not ds.train and SomethingV1(v1, "train").train


def test_v2_is_read_as_published(v2):
    ds = SomethingV2(v2, "train", train=False)
    assert ds.classes == ["Closing something", "Turning something right"] and ds.targets.tolist() == [1, 0]
    assert [ds.length(i) for i in range(2)] == [12, 20] and np.abs(np.array(shown(ds[1][0].numpy())) - ds.frame_indices(1).numpy()).max() <= 1


def test_charades_labels_belong_to_what_was_seen(charades):
    test, train = Charades(charades, "test"), Charades(charades, "train", sampling="dense")
    assert test.multilabel and test.targets.tolist() == [[1, 1, 0], [0, 0, 0]] and test[0][1].tolist() == [1, 1, 0]
    for first, last, expected in ((0, 60, [1, 0, 0]), (80, 180, [0, 0, 0]), (60, 195, [1, 1, 0]), (190, 230, [0, 1, 0]), (0, 239, [1, 1, 0])):
        assert train.label(0, torch.tensor([first, last])).tolist() == expected, (first, last)
    torch.manual_seed(0)
    seen = {tuple(train[0][1].tolist()) for _ in range(60)}
    assert {(1, 0, 0), (0, 0, 0), (0, 1, 0)} <= seen and (1, 1, 0) not in seen  # no window of 64 frames meets both


def test_other_places_can_be_named(v1):
    (v1 / "20bn-something-something-v1").rename(v1 / "frames")
    with pytest.raises(FileNotFoundError, match="name another with media="): SomethingV1(v1, "train")
    assert len(SomethingV1(v1, "train", media="frames")) == 3
    with pytest.raises(ValueError, match="'train' or 'validation'"): SomethingV1(v1, "test", media="frames")
    with pytest.raises(FileNotFoundError, match="something-something-v1-validation.csv"): SomethingV1(v1, "validation", media="frames")


@pytest.mark.parametrize("line, text, reason", [
    (2, "10;Closing", "train.csv:2: unknown class 'Closing'"), (2, "11;Closing it", "train.csv:2: there is no .*11"), (3, "no separator", "train.csv:3: expected 'id;label'"),
    (3, "3;Closing it", "train.csv:3: 3 stands already in line 1"), (1, ";Closing it", "train.csv:1: expected")])
def test_wrong_lines_of_v1(v1, line, text, reason):
    place = v1 / "something-something-v1-train.csv"
    lines = place.read_text().splitlines()
    lines[line - 1] = text
    place.write_text("\n".join(lines))
    with pytest.raises(AnnotationError, match=reason): SomethingV1(v1, "train")
    with pytest.warns(UserWarning, match="1 lines of the annotations were dropped"): ds = SomethingV1(v1, "train", strict=False)
    assert len(ds) == 2 and len(ds.dropped) == 1 and ds.describe().dropped == 1


@pytest.mark.parametrize("old, new, reason", [
    ('"Closing [something]"', '"Clsing [something]"', "train.json:3: unknown class 'Clsing something'"), ('"template": "Closing [something]"', '"t": 1', "train.json:3: expected an entry"),
    ('"10"', '"12"', "train.json:3: there is no .*12.webm"), ('"label": "closing it",', '"label": closing,', "train.json:4: is broken JSON"), ("}\n]\n", "}", "train.json:4: is broken JSON"), ("[\n", '{"a":\n[', "broken JSON")])
def test_wrong_entries_of_v2(v2, old, new, reason):
    place = v2 / "labels" / "something-something-v2-train.json"
    place.write_text(place.read_text().replace(old, new))
    with pytest.raises(AnnotationError, match=reason): SomethingV2(v2, "train")


@pytest.mark.parametrize("old, new, reason", [
    ("c001 8.00", "c009 8.00", "train.csv:3: unknown class 'c009'"), ("8.00 9.50", "9.50 8.00", "train.csv:3: bad times"), ("8.00 9.50", "8.00", "train.csv:3: expected 'class start end'"),
    ("8.00 9.50", "8.00 later", "train.csv:3: bad times"), ("0.00 3.00", "-1 3.00", "train.csv:3: bad times"), ("0.00 3.00", "nan 3.00", "train.csv:3: bad times"),
    ("FGHIJ,Y,none,,2.0", "KLMNO,Y,none,,2.0", "train.csv:4: there is no .*KLMNO"), ("FGHIJ,Y,none,,2.0", "FGHIJ", "train.csv:4: too few columns"), ("actions", "act", "train.csv:1: expected columns")])
def test_wrong_lines_of_charades(charades, old, new, reason):
    place = charades / "annotations" / "Charades_v1_train.csv"
    place.write_text(place.read_text().replace(old, new))
    with pytest.raises(AnnotationError, match=reason): Charades(charades, "train")


@pytest.mark.parametrize("text, reason", [("5", "labels.json:1: expected names"), ("null", "labels.json:1: expected names"), ('["a"]', "labels.json:1: expected names"), ("{", "labels.json:1: is broken JSON")])
def test_wrong_labels_of_v2(v2, text, reason):
    (v2 / "labels" / "something-something-v2-labels.json").write_text(text)
    with pytest.raises(AnnotationError, match=reason): SomethingV2(v2, "train")


def test_annotations_in_another_encoding(v1):
    place = v1 / "something-something-v1-train.csv"
    place.write_bytes(b"3;Closing it\n10;Clos\xe9\n")
    with pytest.raises(AnnotationError, match="train.csv:2: is not UTF-8"): SomethingV1(v1, "train")
    place.write_bytes(b"\xef\xbb\xbf3;Closing it\r\n10;Closing it\r\n")  # as a spreadsheet saves it
    assert len(SomethingV1(v1, "train")) == 2


def test_pictures(tmp_path):
    folder = pictures(tmp_path / "clip", 9)
    assert shown(read_pictures(folder, [8, 0, 0])) == [8, 0, 0]
    assert shown(read_clip(pictures(tmp_path / "ABC", 4, name="ABC-{:06}.jpg"), [3])) == [3]
    with pytest.raises(VideoReadError, match="frame 9 was asked for, but it has 9"): read_pictures(folder, [9])
    (folder / "00003.jpg").write_bytes((folder / "00003.jpg").read_bytes()[:-60])
    with pytest.raises(VideoReadError, match="00003.jpg: is no picture"): read_pictures(folder, [2])
    (folder / "00003.jpg").unlink()
    with pytest.raises(VideoReadError, match="picture 3 is missing"): list_pictures(folder)
    with pytest.raises(VideoReadError, match="no numbered pictures"): list_pictures(tmp_path)


def test_broken_clips_are_told_before_training(v1):
    (v1 / "20bn-something-something-v1" / "10" / "00004.jpg").unlink()
    with pytest.raises(AnnotationError, match="train.csv:2: .*picture 4 is missing"): SomethingV1(v1, "train")
    ds = SomethingV1(v1, "train", on_error="skip")
    assert len(ds) == 3
    torch.manual_seed(0)
    assert {ds[1][1] for _ in range(30)} == {1, 2}  # another clip comes with its own label
    assert ds.skipped >= 30
    with pytest.raises(ValueError, match="nothing may be replaced in evaluation"): SomethingV1(v1, "train", train=False, on_error="skip")
    ds.train, before = False, ds.skipped  # whoever turns a training set into one for evaluation
    with pytest.raises(VideoReadError, match="item 1: "): ds[1]
    assert ds.skipped == before


def test_the_count_is_shown_at_the_end_of_the_epoch(v1, capfd):
    (v1 / "20bn-something-something-v1" / "10" / "00004.jpg").unlink()
    ds = SomethingV1(v1, "train", num_frames=2, on_error="skip", transform=lambda video: video[..., :32, :32] / 255)
    with pytest.warns(UserWarning, match="picture 4 is missing"): valid = SomethingV1(v1, "train", num_frames=2, train=False, strict=False, transform=ds.transform)
    learner = Learner(tsn_tiny(3), DataLoaders.from_datasets(ds, valid, 3), Recipe.short_actions(epochs=2, batch_size=3), device="cpu")
    learner.fit()
    counts = [record["skipped"] for record in learner.history]
    assert 1 <= counts[0] < counts[1] == ds.skipped
    assert f"{counts[1]} clips could not be read and were replaced" in capfd.readouterr().err


def test_replaced_items_are_counted_over_all_workers(v1):
    (v1 / "20bn-something-something-v1" / "10" / "00004.jpg").unlink()
    ds = SomethingV1(v1, "train", on_error="skip")
    loader = DataLoader(ds, batch_sampler=[[1], [0], [1], [2], [0], [2]], num_workers=2)
    list(loader)
    assert ds.skipped >= 2
    first = ds.skipped
    list(loader)
    assert ds.skipped >= first + 2


def test_reading_errors_name_file_and_index(tmp_path):
    (tmp_path / "a").mkdir()
    write_video(tmp_path / "a" / "x.mp4", grey(8))
    (tmp_path / "a" / "y.mp4").write_bytes((tmp_path / "a" / "x.mp4").read_bytes()[:300])
    with pytest.raises(VideoReadError, match="item 1: .*y.mp4"): VideoFolder(tmp_path)[1]
    (tmp_path / "a" / "x.mp4").unlink()
    with pytest.raises(VideoReadError, match="100 clips in a row"): VideoFolder(tmp_path, train=True, on_error="skip")[0]


def test_class_folders_are_indexed_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "x.mp4", grey(8))
    (tmp_path / "b" / "y.mp4").write_bytes((tmp_path / "b" / "x.mp4").read_bytes()[:300])
    assert [VideoFolder(tmp_path).length(i) for i in (0, 1)] == [8, 8] and (tmp_path / ".stasta_index.json").exists()
    calls, measured = [], datasets._measured
    monkeypatch.setattr(datasets, "_measured", lambda path: calls.append(path.name) or measured(path))
    ds = VideoFolder(tmp_path)
    assert len(ds) == 3 and ds[1][0].shape == (8, 3, 32, 40) and calls == ["y.mp4"]  # what is broken is looked at again
    with pytest.raises(VideoReadError, match="item 2: .*y.mp4"): ds[2]


def test_indices_as_in_a_list(v1):
    ds = SomethingV1(v1, "train", train=False)
    assert torch.equal(ds[-1][0], ds[2][0])
    for i in (3, -4):
        with pytest.raises(IndexError): ds[i]


@pytest.mark.parametrize("sampling", ["segment", "dense"])
def test_views_are_stacked(v1, sampling):
    ds = SomethingV1(v1, "train", train=False, num_clips=10, sampling=sampling, transform=lambda x: torch.stack([x, x.flip(-1), x]))
    assert ds[0][0].shape == (30, 8, 3, 32, 40) and ds.frame_indices(0).shape == (10, 8)
    assert torch.equal(ds[0][0][1], ds[0][0][0].flip(-1))
    assert next(iter(DataLoader(ds, batch_size=2)))[0].shape == (2, 30, 8, 3, 32, 40)
    for i in range(3): assert 0 <= ds.frame_indices(i).min() and ds.frame_indices(i).max() < ds.length(i)


def test_memory_or_disk_give_the_same(v1):
    a, b = (SomethingV1(v1, "train", train=False, num_clips=2, in_memory=m) for m in (False, True))
    for i in range(3): assert torch.equal(a[i][0], b[i][0]) and torch.equal(a[i][0], b[i][0])


@pytest.mark.parametrize("text, reason", [("clip 12", "list.txt:1: expected"), ("clip twelve 0", "list.txt:1: expected"), ("clip 11 0", "list.txt:1: .*has 12 frames, not 11"),
                                          ("gone 12 0", "list.txt:1: there is no"), ("clip 12 7", "list.txt:1: label 7, but there are 2 classes"), ("clip 12 99999999", "list.txt:1: expected")])
def test_wrong_lists(tmp_path, text, reason):
    pictures(tmp_path / "clip", 12), pictures(tmp_path / "a clip with spaces", 5)
    (tmp_path / "list.txt").write_text(text + "\na clip with spaces 5 1\n")
    with pytest.raises(AnnotationError, match=reason): VideoList(tmp_path / "list.txt", classes=["a", "b"])
    with pytest.warns(UserWarning, match="1 lines"): ds = VideoList(tmp_path / "list.txt", classes=["a", "b"], strict=False)
    assert [(p.name, label) for p, label in ds.items] == [("a clip with spaces", 1)] and ds.length(0) == 5
    assert VideoList(write_list(ds, tmp_path / "new.txt", tmp_path)).items == ds.items


def test_the_index_follows_the_data(v1, monkeypatch):
    ds, index = SomethingV1(v1, "train"), v1 / "20bn-something-something-v1" / ".stasta_index.json"
    assert index.exists() and not list(index.parent.glob(".*.part*"))
    calls, measured = [], datasets._measured
    monkeypatch.setattr(datasets, "_measured", lambda path: calls.append(path.name) or measured(path))
    SomethingV1(v1, "train")
    assert calls == []
    Image.fromarray(grey(1)[0]).save(index.parent / "7" / "00006.jpg")
    assert SomethingV1(v1, "train").length(2) == 6 and calls == ["7"]
    for nonsense in ("", "{", "[1]", '{"3": 5}', '{"3": ["x"]}'):
        index.write_text(nonsense)
        assert [SomethingV1(v1, "train").length(i) for i in range(3)] == [12, 20, 6]
    assert [ds.length(i) for i in range(3)] == [12, 20, 5]  # one that is open keeps what it knew


def test_an_interrupted_index_leaves_the_old_one(v1, monkeypatch):
    SomethingV1(v1, "train")
    index = v1 / "20bn-something-something-v1" / ".stasta_index.json"
    before = index.read_bytes()

    def stop(path): raise KeyboardInterrupt
    monkeypatch.setattr(datasets, "_measured", stop)
    Image.fromarray(grey(1)[0]).save(index.parent / "7" / "00006.jpg")
    with pytest.raises(KeyboardInterrupt): SomethingV1(v1, "train")
    assert index.read_bytes() == before


def test_data_that_cannot_be_written_have_their_index_in_the_cache(v1, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (v1 / "20bn-something-something-v1" / ".stasta_index.json").mkdir()  # stands in the way, whoever we are
    ds = SomethingV1(v1, "train")
    assert len(list((tmp_path / "cache" / "stasta_edu").glob("*.json"))) == 1
    monkeypatch.setattr(datasets, "_measured", lambda path: pytest.fail("counted again"))
    assert SomethingV1(v1, "train").length(1) == ds.length(1) == 20


def test_ten_thousand_clips_open_at_once_the_second_time(tmp_path, monkeypatch):
    for i in range(10_000): (tmp_path / f"{i}.mp4").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("".join(f"{i}.mp4 {10 + i % 50} 0\n" for i in range(10_000)))
    monkeypatch.setattr(datasets, "_measured", lambda path: [10 + int(path.stem) % 50, 12.0])  # what is timed is the second time
    VideoList(tmp_path / "list.txt")
    monkeypatch.setattr(datasets, "_measured", lambda path: pytest.fail("counted again"))
    start = time.perf_counter()
    ds = VideoList(tmp_path / "list.txt")
    assert time.perf_counter() - start < 2 and len(ds) == 10_000 and ds.length(9_999) == 59


def test_a_look_at_the_data(v1, charades):
    d = SomethingV1(v1, "train", train=False).describe()
    assert (d.clips, d.per_class, sorted(d.lengths)) == (3, [1, 1, 1], [5, 12, 20]) and "frames: 5 to 20, median 12" in repr(d)
    assert list(d.plot().data[0].x) == [1, 1, 1]
    assert Charades(charades, "test").describe().per_class == [1, 1, 0]
    page = Charades(charades, "test").show_batch(2, height=40)
    assert page.height == (40 + 16 + 20) + (40 + 16 + 6) and page.width > 8 * 40  # the second has no label


def open_all(root):
    return {(name, split): kind(root / name, split, train=False) for name, (kind, second) in SETS.items() for split in ("train", second)}


def test_samples_are_what_the_library_writes(tmp_path):
    "The committed samples, and new ones: the same annotations, and clips that look the same."
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file()) <= 3_000_000
    write_samples(tmp_path)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {p.relative_to(SAMPLES).as_posix() for p in SAMPLES.rglob("*") if p.is_file() and p.name != ".stasta_index.json"} - {"README.md", ".gitignore"}
    for name in names:
        if name.endswith((".csv", ".json", ".txt")): assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), name
    old, new = open_all(SAMPLES), open_all(tmp_path)
    for key, ds in new.items():
        assert len(ds) == len(old[key]) and torch.equal(ds.targets, old[key].targets)
        for i in range(0, len(ds), 3): assert (ds[i][0].float() - old[key][i][0].float()).abs().mean() < 2, (key, i)
    assert sum(len(new["charades", s]) for s in ("train", "test")) >= 24
    stories = [i for s in ("train", "test") for i in range(len(new["charades", s])) if new["charades", s].items[i][0].name.startswith("S")]
    assert len(stories) == 2
    story = new["charades", "test"]
    assert len(story.intervals[-1]) > 3 and story.targets[-1].sum() > 3
    for k, start, end in story.intervals[-1]: assert 0 <= start < end <= story.length(len(story) - 1) / story.fps[-1] + 0.1


def test_v1_and_v2_samples_hold_the_same_clips():
    a, b = SomethingV1(SAMPLES / "something_v1", train=False), SomethingV2(SAMPLES / "something_v2", train=False)
    assert a.classes == b.classes and torch.equal(a.targets, b.targets)
    for i in (0, 7): assert (a[i][0].float() - b[i][0].float()).abs().mean() < 8


def test_samples_leave_others_alone(tmp_path):
    (tmp_path / "charades").mkdir()
    (tmp_path / "charades" / "mine.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="charades: is there"): write_samples(tmp_path, 2, 1)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["charades", "mine.txt"]
