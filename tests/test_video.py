"Broken, odd and healthy files: the right frames or a `VideoReadError`, never a hang, a crash or a short clip in silence."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stasta_edu.video import VideoReadError, probe, read_frames, read_in_sequence, segment_indices, write_video

shared_clips = sorted((Path(__file__).resolve().parents[2] / "shared" / "data").glob("*.m[pk][4v]"))


def bar_clip(n_frames=30, height=48, width=64):
    "A bright bar whose left edge is at pixel 2t: the pictures tell their own number."
    frames = np.full((n_frames, height, width, 3), 40, np.uint8)
    for t in range(n_frames):
        frames[t, 8:40, 2 * t : 2 * t + 8] = 230
    return frames


def frame_number(frame):
    return int((frame[20, :, 0] > 135).argmax()) / 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".avi"])
def test_random_access_gives_the_frames_asked_for(tmp_path, suffix):
    path = write_video(tmp_path / f"clip{suffix}", bar_clip(28))
    asked = [27, 0, 13, 14, 5, 5]
    assert [frame_number(f) for f in read_frames(path, asked)] == asked
    assert probe(path).num_frames == 28


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63), (33, 64), (48, 48), (40, 100)])
def test_odd_sizes_keep_their_size(tmp_path, height, width):
    path = write_video(tmp_path / "odd.mp4", bar_clip(10, height, width))
    assert read_frames(path, [0, 9]).shape == (2, height, width, 3)


def test_paths_in_any_alphabet(tmp_path):
    path = write_video(tmp_path / "кошка спит 猫.mp4", bar_clip(6))
    assert len(read_frames(path, range(6))) == 6


@pytest.mark.parametrize("name, content, reason", [
    ("empty.mp4", b"", "empty"),
    ("text.mp4", b"not a video at all\n" * 200, "text.mp4"),
    ("zeros.webm", bytes(5000), "zeros.webm"),
    ("picture.mp4", b"\x89PNG\r\n\x1a\n" + bytes(300), "picture.mp4"),
])
def test_what_is_no_video_says_so(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    for call in (probe, lambda p: read_frames(p, [0]), lambda p: read_in_sequence(p, [0])):
        with pytest.raises(VideoReadError, match=reason):
            call(tmp_path / name)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(VideoReadError, match="no such file"):
        read_frames(tmp_path / "gone.mp4", [0])
    with pytest.raises(VideoReadError, match="directory"):
        read_frames(tmp_path, [0])


@pytest.mark.parametrize("indices", [[30], [0, 400], [-1]])
def test_frames_beyond_the_end(tmp_path, indices):
    path = write_video(tmp_path / "clip.mp4", bar_clip(30))
    with pytest.raises(VideoReadError, match="clip.mp4.*has 30 frames"):
        read_frames(path, indices)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_cut_off_files_do_not_pass_as_short_clips(tmp_path, suffix, share):
    whole = write_video(tmp_path / f"whole{suffix}", bar_clip(60), gop=6)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(VideoReadError, match="cut"):
        read_frames(cut, [0, 59])
    with pytest.raises(VideoReadError):
        read_frames(cut, [0])


def test_failed_writes_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", bar_clip().astype(float))
    with pytest.raises(ValueError, match="cannot write"):
        write_video(tmp_path / "a.docx", bar_clip())
    with pytest.raises(OSError):
        write_video(tmp_path / "nowhere" / "a.mp4", bar_clip())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", bar_clip(12))
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("stasta_edu.video._encode", stop)
    with pytest.raises(KeyboardInterrupt):
        write_video(path, bar_clip(20))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_segments_cover_the_clip():
    for num_frames in range(1, 60):
        middle = segment_indices(num_frames, 8)
        assert (middle.diff() >= 0).all() and 0 <= middle.min() and middle.max() < num_frames
        assert middle[0] + middle[-1] in (num_frames - 1, num_frames)  # centred
    with pytest.raises(ValueError):
        segment_indices(0, 8)


def test_importing_the_library_in_any_order_does_not_crash():
    code = "import stasta_edu.video, torch, decord, av"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(not shared_clips, reason="the two real clips are not here")
@pytest.mark.parametrize("path", shared_clips, ids=lambda p: p.name)
def test_real_clips_agree_with_reading_in_sequence(path):
    n = probe(path).num_frames
    indices = segment_indices(n, 6).tolist()
    fast, oracle = read_frames(path, indices, size=(64, 96)), read_frames(path, indices, size=(64, 96), backend="pyav")
    assert np.abs(fast.astype(int) - oracle.astype(int)).mean() < 3  # the two libraries round colours differently
