"Broken, odd and healthy files: the right frames or a `VideoReadError`, never a hang, a crash or a short clip in silence."
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch  # before av and decord
import av
import numpy as np
from torch.utils.data import DataLoader

from stasta_edu.video import VideoReadError, count_frames, dense_indices, probe, read_frames, read_in_sequence, segment_indices, verify, write_video

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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_no_cut_leaves_a_clip_that_passes_for_a_shorter_one(tmp_path, suffix):
    "At every third byte. Of H.264 in Matroska the last packet is a frame from further in front: it may have been dropped by the camera, and nobody can tell."
    whole, cut = write_video(tmp_path / f"whole{suffix}", bar_clip(24), quality=40).read_bytes(), tmp_path / f"cut{suffix}"
    counted, read = set(), set()
    for size in range(1, len(whole), 3):
        cut.write_bytes(whole[:size])
        try: counted.add(count_frames(cut))
        except VideoReadError: pass
        try: read.add((len(read_frames(cut, [0])), probe(cut).num_frames))
        except VideoReadError: pass
    allowed = {23, 24} if suffix == ".mkv" else {24}
    assert counted <= allowed and {n for _, n in read} <= allowed, (counted, read)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_short_clips_at_any_rate_are_no_damage(tmp_path, suffix):
    for fps in (1, 5, 12, 24, 25, 30, 60):
        for n in (1, 2, 3, 5): assert count_frames(write_video(tmp_path / f"short{suffix}", bar_clip(n), fps=fps)) == len(read_frames(tmp_path / f"short{suffix}", range(n))) == n


def encoded(path, frames, codec="libx264", pix_fmt="yuv420p", times=None, rate=12, sound=0.0):
    "A file that `write_video` would not make. `times` in ticks of 1/120 s; `sound` in seconds."
    with av.open(str(path), "w") as container:
        stream = None
        if frames is not None:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], pix_fmt, 1
            if times is not None: stream.codec_context.time_base = Fraction(1, 120)
        voice = container.add_stream("aac" if path.suffix == ".mp4" else "libopus", rate=48000) if sound else None
        for t, frame in enumerate(() if frames is None else frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None: picture.pts, picture.time_base = times[t], Fraction(1, 120)
            container.mux(stream.encode(picture))
        if stream: container.mux(stream.encode(None))
        for k in range(int(sound * 48000) // 960):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 48000, 960 * k
            container.mux(voice.encode(tone))
        if voice: container.mux(voice.encode(None))
    return path


def agrees_with_the_numbers(path, n, asked=(0, 5, 3)):
    asked = [i for i in asked if i < n]
    assert count_frames(path) == verify(path) == n
    for backend in ("decord", "pyav"):
        assert [frame_number(f) for f in read_frames(path, asked, backend=backend)] == asked, backend


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    gaps = np.random.default_rng(0).integers(4, 40, 24)
    path = encoded(tmp_path / f"vfr{suffix}", bar_clip(24), times=np.cumsum(gaps).tolist())
    agrees_with_the_numbers(path, 24, (0, 23, 11))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_lasts_longer_is_no_damage(tmp_path, suffix):
    agrees_with_the_numbers(encoded(tmp_path / f"loud{suffix}", bar_clip(24), sound=3.0), 24)


@pytest.mark.parametrize("name, codec, pix_fmt", [("grey.mp4", "libx264", "gray"), ("ten_bit.mp4", "libx264", "yuv420p10le"), ("ten_bit.mkv", "libx264", "yuv422p10le"),
                                                  ("other.mkv", "mpeg4", "yuv420p"), ("stream.ts", "libx264", "yuv420p"), ("old.avi", "mpeg4", "yuv420p"), ("camera.avi", "libx264", "yuv420p"), ("flash.flv", "libx264", "yuv420p")])
def test_unusual_pixels_and_containers(tmp_path, name, codec, pix_fmt):
    agrees_with_the_numbers(encoded(tmp_path / name, bar_clip(12), codec, pix_fmt), 12, (11, 0, 6))


def test_random_access_in_avi_is_right_where_decord_is_wrong(tmp_path):
    path = encoded(tmp_path / "camera.avi", bar_clip(28))
    agrees_with_the_numbers(path, 28, (27, 0, 13, 14))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    code = "import sys; from stasta_edu.video import VideoReadError, read_frames\ntry: read_frames(sys.argv[1], [0])\nexcept VideoReadError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "pipe.mp4"], capture_output=True, text=True, timeout=60)
    assert "pipe.mp4: is no regular file" in done.stdout


@pytest.mark.parametrize("wanted, text", [(dict(size=(0, 5)), "size must be"), (dict(backend="cv2"), "backend must be"), (dict(indices=[]), "no frame indices")])
def test_wrong_requests(tmp_path, wanted, text):
    path = write_video(tmp_path / "clip.mp4", bar_clip(4))
    with pytest.raises(ValueError, match=text): read_frames(path, **{"indices": [0], **wanted})


def test_one_frame_is_a_clip(tmp_path):
    for suffix in (".mp4", ".webm", ".avi"): agrees_with_the_numbers(write_video(tmp_path / f"one{suffix}", bar_clip(1)), 1, (0,))


@pytest.mark.parametrize("quarter, turned", [(1, lambda f: np.rot90(f, -1)), (2, lambda f: np.rot90(f, 2)), (3, lambda f: np.rot90(f, 1))])
def test_a_phone_held_upright(tmp_path, quarter, turned):
    "The display matrix in the track header of an MP4 says how to turn the pictures (clockwise here)."
    data = bytearray(write_video(tmp_path / "lying.mp4", bar_clip(8)).read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, x, y = {1: (0, 1, 48, 0), 2: (-1, 0, 64, 48), 3: (0, -1, 0, 64)}[quarter]
    fixed = [a << 16, b << 16, 0, -b << 16, a << 16, 0, x << 16, y << 16, 1 << 30]
    data[at : at + 36] = b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in fixed)
    (tmp_path / "upright.mp4").write_bytes(data)
    expected = turned(read_frames(tmp_path / "lying.mp4", [5])[0]).astype(int)
    for backend in ("decord", "pyav"):
        got = read_frames(tmp_path / "upright.mp4", [5], backend=backend)[0]
        assert got.shape == expected.shape and np.abs(got - expected).mean() < 3, backend


def test_sound_alone_is_no_video(tmp_path):
    path = encoded(tmp_path / "song.mp4", None, sound=0.5)
    for call in (probe, verify, lambda p: read_frames(p, [0])):
        with pytest.raises(VideoReadError, match="song.mp4: holds no video stream"): call(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_no_permission(tmp_path):
    "The superuser may read everything, so as such the test becomes somebody else for a moment."
    path = write_video(tmp_path / "secret.mp4", bar_clip(4))
    path.chmod(0)
    me = os.geteuid()
    try:
        if me == 0: os.seteuid(65534)
        with pytest.raises(VideoReadError, match="secret.mp4: no permission"): read_frames(path, [0])
    finally: os.seteuid(me)


def test_a_changed_file_is_looked_at_again(tmp_path):
    path = write_video(tmp_path / "clip.mp4", bar_clip(10))
    read_frames(path, [9])
    write_video(path, bar_clip(20))
    assert frame_number(read_frames(path, [19])[0]) == 19
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VideoReadError): read_frames(path, [0])


def test_worker_processes_open_their_own_reader(tmp_path):
    paths = [write_video(tmp_path / f"{k}.mp4", bar_clip(12)) for k in range(6)]
    read_frames(paths[0], [0])  # opened and closed in this process before the workers come

    class Clips(torch.utils.data.Dataset):
        def __len__(self): return 24
        def __getitem__(self, i): return frame_number(read_frames(paths[i % 6], [i % 12])[0])
    got = [v for batch in DataLoader(Clips(), batch_size=4, num_workers=2, timeout=60) for v in batch.tolist()]
    assert got == [i % 12 for i in range(24)]


def mutated(data, kind, rng):
    "Damage as it happens: a copy that stopped, bits that flipped, blocks that went missing, doubled or are foreign."
    data, n = bytearray(data), len(data)
    if kind == "cut": return data[: rng.integers(1, n)]
    if kind == "flip":
        for at in rng.integers(0, n, rng.choice([1, 3, 20])): data[at] ^= 1 << rng.integers(8)
        return data
    a, b = sorted(rng.integers(0, n, 2).tolist())
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


CHILD = """
import json, os, select, signal, sys, time
import torch, av, decord
import numpy as np
from pathlib import Path
from stasta_edu.video import VideoReadError, count_frames, read_frames, verify
torch.set_num_threads(1)
quiet = os.open(os.devnull, os.O_WRONLY)
os.dup2(quiet, 2)

def verdict(path, truth):
    asked = [0, 7, 14, 20, 27]
    try: frames = read_frames(path, asked)
    except VideoReadError: return "refused"
    if len(frames) != 5 or frames[0].shape != truth[0].shape: return "other frames"
    right = np.abs(frames.astype(int) - truth[asked]).mean((1, 2, 3)).max() < 6
    if right: return "right"
    try: verify(path)
    except VideoReadError: return "wrong, verify tells"
    return "wrong pictures"

folder, truths = Path(sys.argv[1]), {}
for line in sys.stdin:
    name, whole = json.loads(line)
    if whole not in truths:
        r, w = os.pipe()  # even the truth is read in a process of its own: no reader is opened before a fork
        if not os.fork():
            np.save(folder / "truth.npy", read_frames(folder / whole, range(28), backend="pyav"))
            os._exit(0)
        os.wait()
        truths[whole] = np.load(folder / "truth.npy")
    r, w = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        try: told = verdict(folder / name, truths[whole])
        except BaseException as error: told = f"{type(error).__name__}: {error}"
        os.write(w, told.encode()[:300])
        os._exit(0)
    os.close(w)
    status = os.waitpid(child, 0)[1]
    told = os.read(r, 400).decode()
    os.close(r)
    if os.WIFSIGNALED(status): told = f"killed by signal {os.WTERMSIG(status)}"
    print(json.dumps([name, told]), flush=True)
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    "What became of 320 damaged files, each read in a process of its own."
    folder, rng, jobs = tmp_path_factory.mktemp("mutants"), np.random.default_rng(5), []
    for suffix in (".mp4", ".mkv", ".webm", ".avi"):
        whole = write_video(folder / f"whole{suffix}", textured(bar_clip(28)), gop=7)
        for kind, n in (("cut", 27), ("flip", 27), ("splice", 26)):
            for k in range(n):
                (folder / f"{kind}{k}{suffix}").write_bytes(mutated(whole.read_bytes(), kind, rng))
                jobs.append((f"{kind}{k}{suffix}", whole.name))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], input="\n".join(map(json.dumps, jobs)), capture_output=True, text=True, env=env, timeout=300)
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(told) == len(jobs) == 320
    return told


def textured(frames):
    "Something to compress: without texture, a packet holds next to nothing that could be damaged."
    noise = np.random.default_rng(0).integers(0, 60, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.maximum(f, np.roll(noise, (t, 2 * t), (0, 1))) for t, f in enumerate(frames)])


def test_damaged_files_never_crash_hang_or_come_short(verdicts):
    known = {"right", "refused", "wrong, verify tells", "wrong pictures"}
    assert {name: told for name, told in verdicts.items() if told not in known} == {}
    assert sum(told == "right" for told in verdicts.values()) > 20 and sum(told == "refused" for told in verdicts.values()) > 100


def test_files_that_were_cut_off_give_right_frames_or_an_error(verdicts):
    assert {name: told for name, told in verdicts.items() if name.startswith("cut") and told not in ("right", "refused")} == {}


def test_flipped_bits_are_told_by_a_strict_reading_where_the_codec_lets_it(verdicts):
    "VP9 has no redundancy that would tell; H.264 and MPEG-4 nearly always do. (Without a checksum, nothing can tell always.)"
    unnoticed = [name for name, told in verdicts.items() if told == "wrong pictures"]
    assert len([name for name in unnoticed if not name.endswith(".webm")]) <= 4
    assert any(told == "wrong, verify tells" for told in verdicts.values())  # otherwise `verify` would be for nothing


def test_failed_writes_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", bar_clip().astype(float))
    with pytest.raises(ValueError, match="cannot write"):
        write_video(tmp_path / "a.docx", bar_clip())
    for wrong in (dict(fps=0), dict(fps=-1), dict(gop=0)):
        with pytest.raises(ValueError, match="fps must be more than 0 and gop at least 1"):
            write_video(tmp_path / "a.mp4", bar_clip(), **wrong)
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


def test_dense_windows():
    for num_frames in (1, 5, 63, 64, 65, 300):
        views = dense_indices(num_frames, 8)
        assert views.shape == (10, 8) and views.min() >= 0 and views.max() < num_frames
        if num_frames >= 64: assert (views.diff(dim=1) == 8).all() and views[0, 0] == 0 and views[-1, 0] == num_frames - 64
        assert dense_indices(num_frames, 8, train=True).shape == (8,)
    with pytest.raises(ValueError): dense_indices(10, 0)


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
