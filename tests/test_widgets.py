"The player's parcel, its pages and its stills: faults and properties that notebook 16 need not show."
import base64
import io
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from stasta_edu.stasta import stasta_tiny
from stasta_edu.video import write_video
from stasta_edu.evaluation import Evaluation
from stasta_edu.explain import Evidence
from stasta_edu.transforms import clip_transform
from stasta_edu.video import probe
from stasta_edu.widgets import (AttentionView, CompareView, ConfusionExplorer, DisplacementView, FrameScrubber, GradCamView, Heat, ImportanceView, Matrix, Outline,
                                Panel, Player, Segment, Track, Vectors, as_frames, film, footage, get_plotlyjs, nearest, pack, page_html, pixels_per_frame,
                                player_html, still, unpack_maps)

rng = np.random.default_rng(0)
CLIP = rng.integers(0, 256, (12, 16, 20, 3), dtype=np.uint8)  # (T, H, W, 3)


# -- frames in any form

@pytest.mark.parametrize("frames", [
    CLIP, torch.from_numpy(CLIP), torch.from_numpy(CLIP).permute(0, 3, 1, 2), (torch.from_numpy(CLIP).permute(0, 3, 1, 2) / 255)[None],
    CLIP.astype(np.float64) / 255,
])
def test_one_form_for_all_frames(frames):
    np.testing.assert_array_equal(as_frames(frames), CLIP)


@pytest.mark.parametrize("frames", [CLIP[..., 0], CLIP[..., :1], CLIP[..., 0][:, None], torch.from_numpy(CLIP[..., 0])])
def test_grey_frames(frames):
    np.testing.assert_array_equal(as_frames(frames), np.repeat(CLIP[..., :1], 3, -1))


@pytest.mark.parametrize("frames, message", [
    (CLIP[:0], "at least one frame"), (np.zeros((4, 5)), "expected frames"), (np.zeros((4, 5, 6, 7)), "expected frames"),
    (torch.randn(4, 3, 8, 8) * 3, "undo the normalisation"), (CLIP.astype(np.int64), "lie in"),
])
def test_frames_that_cannot_be_shown(frames, message):
    with pytest.raises(ValueError, match=message): as_frames(frames)


def test_frames_with_missing_values_are_black_there():
    frames = np.full((1, 4, 4, 3), 0.5, np.float32)
    frames[0, 0, 0] = np.nan
    assert as_frames(frames)[0, 0, 0].tolist() == [0, 0, 0]


# -- maps

def test_missing_values_stay_missing_and_do_not_touch_the_range():
    maps = np.linspace(0, 1, 12 * 4 * 4).reshape(12, 4, 4)
    maps[3] = np.nan
    packed = pack(Heat(maps), 12)
    codes = unpack_maps(packed)
    assert (codes[3] == 0).all() and (np.delete(codes, 3, 0) > 0).all()
    assert (packed["min"], packed["max"]) == (0, 1)
    all_missing = pack(Heat(np.full((12, 4, 4), np.nan)), 12)
    assert (unpack_maps(all_missing) == 0).all()
    json.dumps(all_missing, allow_nan=False)


def test_zero_is_neutral_in_signed_maps_and_dark_in_others():
    assert pack(Heat(np.zeros((12, 4, 4))), 12)["max"] > 0           # no division by zero
    assert (unpack_maps(pack(Heat(np.zeros((12, 4, 4))), 12)) == 1).all()
    signed = rng.normal(size=(12, 4, 4))
    signed[0] = 0
    packed = pack(Heat(signed), 12)
    assert packed["signed"] and packed["cmap"] == "diverging" and packed["min"] == -packed["max"]
    assert (unpack_maps(packed)[0] == 128).all()


def test_one_range_for_the_clip():
    maps = np.ones((12, 4, 4)) * np.arange(12)[:, None, None]
    assert unpack_maps(pack(Heat(maps), 12))[:, 0, 0].tolist() == sorted(unpack_maps(pack(Heat(maps), 12))[:, 0, 0].tolist())
    assert unpack_maps(pack(Heat(maps), 12))[1, 0, 0] < 30


def test_large_maps_are_averaged_before_they_travel():
    maps = np.zeros((2, 224, 224), np.float32)
    maps[:, 100:124, 100:124] = 1
    packed = pack(Heat(maps), 2)
    assert packed["w"] <= 112
    assert unpack_maps(packed).astype(float).mean() == pytest.approx(1 + 254 * maps.mean(), rel=0.01)


@pytest.mark.parametrize("thing, message", [
    (Heat(np.zeros((8, 4, 4))), r"8 for 12 frames; pass at=.*segment_indices\(12, 8\)"),
    (Heat(np.zeros((8, 4, 4)), at=[0, 1]), "names 2 frames"),
    (Heat(np.zeros((2, 4, 4)), at=[0, 12]), "frames 0 to 11"),
    (Heat(np.zeros((12, 4))), "expected 3 dimensions"),
    (Heat(np.zeros((0, 4, 4))), "none of them empty"),
    (Heat(np.zeros((12, 4, 4)), cmap="jet"), "cmap must be one of magma"),
    (Vectors(np.zeros((12, 3, 4, 4))), r"expected \(T, 2, h, w\)"),
    (Vectors(np.zeros((12, 2, 4, 4)), np.zeros((12, 5, 5))), "do not belong together"),
    (Vectors(np.zeros((12, 2, 4, 4)), style="quiver"), "'arrows' or 'wheel'"),
    (Outline(np.full((12, 4, 4), 51)), "from 0 to 50"),
    (Track("curve", np.zeros(8)), "8 for 12 frames"),
    (Matrix(np.zeros((4, 4, 8, 8))), "8 for 12 frames"),
    (Matrix(np.zeros((4, 4, 12, 6))), r"expected \(h, w, T, T\)"),
    (Track("actions", segments=[Segment(4, 4, "nothing")]), "do not lie"),
])
def test_what_does_not_fit_is_refused(thing, message):
    with pytest.raises(ValueError, match=message): pack(thing, 12)


def test_vectors_come_back():
    motion, sure = rng.uniform(-3, 3, (12, 2, 6, 7)).astype(np.float32), rng.uniform(0, 0.4, (12, 6, 7)).astype(np.float32)
    motion[0, :, 0, 0] = np.nan
    packed = pack(Vectors(motion, sure), 12)
    codes = unpack_maps(packed).astype(float)  # (12, 6, 7, 3)
    back = (codes[..., :2].transpose(0, 3, 1, 2) - 128) / 127 * packed["max"]
    np.testing.assert_allclose(back[1:], motion[1:], atol=packed["max"] / 127)
    assert codes[0, 0, 0, 2] == 0  # no arrow where there is no value
    np.testing.assert_allclose(codes[1:, ..., 2] / 255 * sure.max(), sure[1:], atol=0.01)


def test_arrows_that_are_cut_keep_their_direction():
    motion = np.zeros((1, 2, 2, 2), np.float32)
    motion[0, :, 0, 0], motion[0, :, 1, 1] = (8, 6), (3, 4)
    packed = pack(Vectors(motion, vmax=5), 1)
    codes = (unpack_maps(packed)[0, ..., :2].astype(float) - 128) / 127
    np.testing.assert_allclose([codes[0, 0], codes[1, 1], codes[0, 1]], [(0.8, 0.6), (0.6, 0.8), (0, 0)], atol=0.005)
    assert packed["cut"] and not pack(Vectors(motion), 1)["cut"]


def test_masks_survive_a_noisy_browser():
    ids = rng.integers(0, 8, (12, 9, 9))
    packed = pack(Outline(ids, ["<b>cat</b>"]), 12)
    noisy = unpack_maps(packed).astype(int) + rng.integers(-3, 4, ids.shape)
    np.testing.assert_array_equal(np.rint(noisy / packed["step"]), ids)
    assert packed["names"][0] == "<b>cat</b>" and len(packed["names"]) == 7


def test_nearest_is_the_nearest():
    for _ in range(50):
        n = int(rng.integers(1, 40))
        at = sorted(rng.choice(n, int(rng.integers(1, n + 1)), replace=False).tolist())
        assert [abs(at[i] - t) for t, i in enumerate(nearest(at, n))] == [min(abs(a - t) for a in at) for t in range(n)]


# -- scenes, pages, stills

def scene(title="A clip"):
    return Player([Panel(CLIP, [Heat(rng.normal(size=(3, 4, 4)), "heat", at=[1, 5, 9])], "left"), Panel(CLIP, [], "right")],
                  [Track("curve", [0.1, -0.2, np.nan], [Segment(2, 5, "throw", True)], at=[1, 5, 9])], title=title)


def test_a_clip_travels_once():
    spec = scene().spec
    assert len(spec["clips"]) == 1 and [p["clip"] for p in spec["panels"]] == [0, 0]
    assert spec["seen"] == [1, 5, 9]
    json.dumps(spec, allow_nan=False)


def test_panels_must_share_a_time_line():
    with pytest.raises(ValueError, match="share one time line"): Player([Panel(CLIP), Panel(CLIP[:5])]).spec
    with pytest.raises(ValueError, match="at least one panel"): Player([]).spec
    with pytest.raises(ValueError, match="fps must be positive"): Player([Panel(CLIP)], fps=0).spec
    with pytest.raises(ValueError, match="fps must be positive"): FrameScrubber(CLIP, fps=0).spec


def test_labels_are_escaped():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    fragment = player_html(Player([Panel(CLIP, title=evil)], [Track(evil, segments=[Segment(0, 3, evil)])], title=evil))
    assert fragment.count("</script>") == 1 and "<img" not in fragment
    parcel = json.loads(re.search(r'<script type="application/json" id="[^"]+">(.*)</script>', fragment, re.S).group(1))
    assert parcel["title"] == evil
    assert "<script>alert" not in page_html(evil, [])


def test_a_page_holds_the_player_once_and_plotly_only_when_needed():
    import plotly.graph_objects as go
    plain = FrameScrubber(CLIP)
    page = page_html("Two", [plain, "<p>and</p>", plain])
    assert page.count("export default") == 1 and page.count("data-stasta-player=\"stasta-") == 2
    assert len(set(re.findall(r'data-stasta-player="([^"]+)"', page))) == 2
    assert "plotly.js v" not in page, "nothing is plotted"
    assert page_html("Curves", [scene(), scene()]).count("plotly.js v") == page_html("Plot", [go.Figure()]).count("plotly.js v") == 1
    assert "data-stasta-player=" not in page_html("None", ["<p>text</p>"])
    figure = go.Figure(go.Scatter(y=[1, 2]))
    with_plots = page_html("Plots", [figure, figure])
    assert with_plots.count("plotly.js v") == page_html("Plot", [figure]).count("plotly.js v") == 1
    assert len(with_plots) < 6_000_000
    assert figure.layout.paper_bgcolor is None  # the caller's figure is left alone


def test_no_address_of_another_machine():
    page = page_html("Alone", [scene()]).replace(get_plotlyjs(), "")
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]+|@import|url\((?!data:|#)|https?://(?!www\.w3\.org)""", page.replace("url(#${", "").replace("`url(#", ""))


def test_64_frames_stay_under_3_megabytes(tmp_path):
    photo = np.asarray(Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((320, 320), Image.Resampling.BICUBIC))
    frames = np.stack([photo[t : t + 224, t : t + 224] for t in range(64)]) // 2 + rng.integers(0, 40, (64, 224, 224, 3), dtype=np.uint8)
    maps = rng.uniform(size=(8, 224, 224)).astype(np.float32)
    path = FrameScrubber(frames, Heat(maps, at=range(4, 64, 8))).to_html(tmp_path / "long.html")
    assert path.stat().st_size < 3_000_000
    full = AttentionView(frames, torch.rand(28, 28, 16, 16).softmax(-1), at=range(0, 64, 4)).to_html(tmp_path / "attention.html")
    assert full.stat().st_size - len(get_plotlyjs()) < 3_000_000


def test_nothing_half_written(tmp_path):
    bad = Player([Panel(CLIP, [Heat(np.zeros((3, 4, 4)))])])
    with pytest.raises(ValueError): bad.to_html(tmp_path / "bad.html")
    with pytest.raises(OSError): scene().to_html(tmp_path / "missing" / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError): scene().to_html(tmp_path / "page.html")


def test_a_saved_notebook_keeps_a_still_and_a_live_one_a_widget():
    bundle, metadata = scene()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.width > 100 and len(bundle["image/png"]) < 200_000  # of noise, the worst case
    assert bundle["text/plain"] == "Player(12 frames, 2 panels, 1 tracks)"


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_stills_of_short_clips(n):
    picture = still(FrameScrubber(CLIP[:n]).spec)
    assert picture.width >= picture.height * (1 if n > 1 else 0)


def test_the_player_is_package_data():
    from importlib.resources import files
    for name in ("player.js", "player.css", "page.css", "page.js"): assert (files("stasta_edu") / "static" / name).is_file()
    for name in ("player.js", "page.js"): assert "</script" not in (files("stasta_edu") / "static" / name).read_text()


# -- views

def test_any_source(tmp_path):
    path = write_video(tmp_path / "clip.mp4", CLIP.repeat(4, 1).repeat(4, 2), fps=24)
    it = footage(path)
    assert it.frames.shape == (12, 64, 80, 3) and it.fps == 24
    assert footage((torch.from_numpy(CLIP).permute(0, 3, 1, 2), 7)).frames.shape == CLIP.shape  # an item of a data set
    thinned = footage(path, max_frames=5)
    assert len(thinned.frames) == 4 and thinned.note == "every 3rd of 12 frames" and thinned.clock([0, 5, 11]) == [0, 1, 3]
    assert FrameScrubber(CLIP, fps=3).spec["fps"] == 3


def test_a_short_clip_brings_its_truth():
    short = SimpleNamespace(frames=CLIP, fps=12, masks=np.ones((12, 16, 20), np.uint8), actors=["cup"], displacement=np.ones((11, 2, 16, 20), np.float32),
                            actions=[SimpleNamespace(start=2, end=5, actor="cup", verb="is thrown", speed=4.0, decisive=True)])
    spec = ImportanceView(short, torch.randn(4), at=[1, 4, 7, 10]).spec
    assert spec["tracks"][0]["segments"] == [{"start": 2, "end": 5, "name": "cup: is thrown", "decisive": True}]
    assert spec["panels"][0]["layers"][0]["names"] == ["cup"]


def test_views_say_what_the_model_lacks():
    nothing = SimpleNamespace(importance=None, importance_map=None, displacement_fast=None, displacement_slow=None, radius=7, stride=8)
    with pytest.raises(ValueError, match="st_afs_ff"): ImportanceView(CLIP, nothing)
    with pytest.raises(ValueError, match="dm_ta"): DisplacementView(CLIP, nothing)


def test_displacement_in_pixels_of_the_frame():
    ones = np.ones((3, 2, 4, 4))
    assert pixels_per_frame(ones, [0, 2, 6], radius=7, stride=16, frame_width=64)[:, 0, 0, 0].tolist() == [56, 28, 28]
    assert pixels_per_frame(ones, [0, 2, 6], radius=7, stride=8, frame_width=64)[0, 0, 0, 0] == 56   # a model input of half the width
    assert pixels_per_frame(ones[:1], [3], radius=7, stride=16, frame_width=64)[0, 0, 0, 0] == 112   # one map: nothing to divide by


class Linear(torch.nn.Module):
    "Class scores are linear in the mean colour of a convolution's output: small, but with a layer that Grad-CAM can look at."
    def __init__(self):
        super().__init__()
        self.num_frames, self.layer4, self.fc = 4, torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Linear(6, 5)

    def forward(self, video):  # (B, T, 3, H, W)
        x = self.layer4(video.flatten(0, 1))  # (B*T, 6, H, W)
        return self.fc(x.mean((2, 3)).view(*video.shape[:2], -1).mean(1))


def test_grad_cam_view_asks_and_answers(tmp_path):
    torch.manual_seed(0)
    model, video = Linear().train(), torch.randn(4, 3, 16, 20)
    model.layer4.eval()
    view = GradCamView(model, video, CLIP, at=[1, 4, 7, 10], classes=list("abcde"), layers=["layer4"])
    choice = view.spec["panels"][1]["choice"]
    assert model.training and not model.layer4.training, "the model is left as it was"
    assert [len(c["options"]) for c in choice["controls"]] == [5, 4, 1] and len(choice["maps"]) == 3
    heard, missing = [], next(k for k in range(5) if f"{k}|Grad-CAM|layer4" not in choice["maps"])
    widget = SimpleNamespace(send=lambda message, buffers=None: heard.append((message, buffers)))
    for key in (f"{missing}|Grad-CAM|layer4", f"{missing}|occlusion|layer4", f"{missing}|integrated gradients|layer4"):
        view.answer(widget, {"kind": "choose", "panel": 1, "key": key})
        assert heard[-1][0]["kind"] == "layer" and heard[-1][0]["layer"]["n"] == 4 and key in choice["maps"]
    for key, said in (("5|Grad-CAM|layer4", "classes 0 to 4"), ("0|Grad-CAM|layr4", "did you mean layer4"), ("0|magic|layer4", "method must be one of"), ("x", "ValueError")):
        view.answer(widget, {"kind": "choose", "panel": 1, "key": key})
        assert heard[-1][0]["kind"] == "failed" and said in heard[-1][0]["text"]
    view.answer(widget, {"kind": "plotly"})
    assert heard[-1][0] == {"kind": "plotly"} and 1_000_000 < len(heard[-1][1][0]) < 2_500_000  # a server drops more than 3 MB in 3 s
    view.to_html(tmp_path / "view.html")
    assert {key.split("|")[1] for key in choice["maps"]} == {"Grad-CAM", "Grad-CAM, per frame", "integrated gradients", "occlusion"}, "a file has all methods"
    with pytest.raises(ValueError, match="target 9"): GradCamView(model, video, targets=[9], layers=["layer4"])
    with pytest.raises(ValueError, match="one clip, got 2"): GradCamView(model, video[None].repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="3 names for the 5 classes"): GradCamView(model, video, classes=list("abc"), layers=["layer4"])


def test_attention_at_each_place():
    A = torch.rand(5, 6, 4, 4).softmax(-1)  # (h, w, T, T)
    view = AttentionView(CLIP, SimpleNamespace(attention=A[None]), at=[1, 4, 7, 10])
    matrix = view.spec["panels"][0]["matrix"]
    back = (unpack_maps({**matrix, "w": 4, "h": 4}).reshape(5, 6, 4, 4) - 1.0) / 254 * matrix["max"]
    np.testing.assert_allclose(back, A, atol=matrix["max"] / 254)
    assert matrix["at"] == [1, 4, 7, 10] and (matrix["h"], matrix["w"]) == (5, 6) and view.spec["seen"] == [1, 4, 7, 10]
    with pytest.raises(ValueError, match="st_afs_ff"): AttentionView(CLIP, SimpleNamespace(attention=None))
    json.dumps(AttentionView(CLIP, torch.full((2, 2, 12, 12), float("nan"))).spec, allow_nan=False)


def test_comparing_two_to_four():
    at = [1, 4, 7, 10]
    found = {"map": rng.uniform(size=(4, 3, 3)), "evidence": Evidence("x", "space-time map", torch.rand(4, 3, 3), at), "motion": Evidence("m", "motion field", torch.rand(4, 2, 3, 3), at),
             "curve": Evidence("c", "time curve", torch.randn(4), at)}
    spec = CompareView(CLIP, found, at).spec
    assert [p["title"] for p in spec["panels"]] == ["clip", "map", "evidence", "motion"] and len(spec["clips"]) == 1
    assert [t["title"] for t in spec["tracks"]] == ["curve"] and spec["panels"][3]["layers"][0]["kind"] == "vectors"
    torch.manual_seed(0)
    models = {name: Linear().eval() for name in ("one", "two", "three", "four")}
    spec = CompareView(CLIP, models, at, torch.randn(4, 3, 16, 20), target=2, classes=list("abcde")).spec
    assert [p["title"].split(",")[0] for p in spec["panels"]] == [f"{n}: c" for n in models]
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slow, self.fast = Linear(), Linear()
        def forward(self, video): return self.slow(video[:, ::2]) + self.fast(video)
    both = CompareView(CLIP, {"one": models["one"], "two": Two().eval()}, at, torch.randn(4, 3, 16, 20)).spec["panels"][2]
    assert [layer["title"] for layer in both["layers"]] == ["slow.layer4", "fast.layer4"], "a map for each pathway"
    assert len(GradCamView(Two().eval(), torch.randn(4, 3, 16, 20), CLIP, at=at).spec["panels"][1]["choice"]["controls"][2]["options"]) == 2
    with pytest.raises(ValueError, match="two to four"): CompareView(CLIP, {"one": found["map"]}, at)
    with pytest.raises(ValueError, match="pass video="): CompareView(CLIP, models, at)
    with pytest.raises(ValueError, match="see AttentionView"): CompareView(CLIP, {"a": found["map"], "b": Evidence("b", "frame matrix", torch.rand(4, 4), at)}, at)


def confusion(n_shown=2):
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 1, 0, 2]), 3) * 5.0
    clips = [(torch.from_numpy(CLIP[:4] // (i + 1)).permute(0, 3, 1, 2), int(k)) for i, k in enumerate(labels)]
    return ConfusionExplorer(Evaluation(logits, labels, ["<b>a</b>", "b", "c"]), clips, n_shown)


def test_a_confusion_matrix_with_its_clips():
    spec = confusion().spec
    cells = {c["key"]: (c["total"], c["shown"]) for c in spec["confusion"]["cells"]}
    assert cells == {"0,1": (3, 2), "1,0": (1, 1), "0,0": (1, 1), "1,1": (1, 1), "2,2": (1, 1)}
    assert spec["confusion"]["selected"] == "0,1", "the most frequent error first"
    assert spec["confusion"]["counts"] == [[1, 3, 0], [1, 1, 0], [0, 0, 1]]
    assert [p["group"] for p in spec["panels"]].count("0,1") == 2 and spec["panels"][0]["title"].startswith("clip 1,")
    assert confusion().still().width > 100


# -- films

@pytest.mark.parametrize("make", [scene, confusion, lambda: AttentionView(CLIP, torch.rand(2, 2, 12, 12)), lambda: FrameScrubber(CLIP[:1])])
def test_every_view_becomes_a_film(make, tmp_path):
    player = make()
    n = player.spec["n"]
    gif, mp4 = player.to_gif(tmp_path / "film.gif", 48), player.to_mp4(tmp_path / "film.mp4", 48)
    picture = Image.open(gif)
    assert getattr(picture, "n_frames", 1) in (n, len({p.tobytes() for p in film(player.spec, 48)}))  # equal frames may be merged
    assert probe(mp4).num_frames == n
    if n > 1: assert len({p.tobytes() for p in film(player.spec, 48)}) > 1, "something moves"


def test_films_are_whole_or_absent(tmp_path):
    with pytest.raises(OSError): scene().to_gif(tmp_path / "missing" / "film.gif")
    with pytest.raises(ValueError): Player([Panel(CLIP, [Heat(np.zeros((3, 4, 4)))])]).to_mp4(tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


# -- odd clips

def test_huge_clips_are_thinned_and_it_is_said():
    it = footage(np.zeros((2000, 6, 8), np.uint8))
    assert len(it.frames) == 250 and it.note == "every 8th of 2000 frames" and it.clock([0, 1999]) == [0, 249]
    large = FrameScrubber(torch.zeros(2, 3, 2160, 3840, dtype=torch.uint8))
    assert large.note == "3840 \u00d7 2160 pixels, shown smaller"
    picture = Image.open(io.BytesIO(base64.b64decode(large.spec["clips"][0]["images"][0])))
    assert picture.size == (448, 252)


def test_an_item_of_a_data_set_in_its_own_colours():
    video = clip_transform(16, short_side=16)(torch.from_numpy(CLIP).permute(0, 3, 1, 2))
    assert np.abs(footage((video, 3)).frames.astype(int) - CLIP[:, :, 2:18].astype(int)).max() <= 1
    with pytest.raises(ValueError, match="undo the normalisation"): footage((video * 9, 3))
    with pytest.raises(ValueError, match="undo the normalisation"): footage(video)  # a bare tensor: nobody says how it was normalised


@pytest.mark.parametrize("what", ["one frame", "grey", "all values missing"])
@pytest.mark.parametrize("view", [ImportanceView, AttentionView, DisplacementView])
def test_views_of_odd_clips_and_maps(view, what, tmp_path):
    torch.manual_seed(0)
    T = 1 if what == "one frame" else 4
    maps = stasta_tiny(num_classes=3, alpha=1).eval().maps(torch.randn(1, T, 3, 32, 40))
    if what == "all values missing": maps = SimpleNamespace(**{k: v * torch.nan if torch.is_tensor(v) else v for k, v in vars(maps).items()})
    player = view(CLIP[:1] if T == 1 else CLIP[..., 0] if what == "grey" else CLIP, maps, None if T == 1 else [1, 4, 7, 10])
    json.dumps(player.spec, allow_nan=False)
    assert player.still().width > 0 and player.to_html(tmp_path / "view.html").stat().st_size > 10_000
    assert player.to_gif(tmp_path / "view.gif", 32).exists() and probe(player.to_mp4(tmp_path / "view.mp4", 32)).num_frames == player.spec["n"]


def test_a_limit_of_no_frames_is_refused():
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"): FrameScrubber(CLIP, max_frames=0)


def test_long_titles_are_whole_in_films():
    short, long = (next(film(Player([Panel(CLIP, title=title)]).spec, 32)) for title in ("a", "a model with quite a long name: its answer, 32%"))
    assert long.width > 2 * short.width and np.asarray(long)[:18, short.width:].min() < 100, "the title goes on"


def test_views_of_missing_values():
    maps = rng.uniform(size=(12, 4, 4))
    maps[3:5] = np.nan
    spec = CompareView(CLIP, {"some": maps, "none": np.full((12, 4, 4), np.nan), "curve": Track("c", [np.nan] * 12)}).spec
    json.dumps(spec, allow_nan=False)
    assert spec["tracks"][0]["values"] == [None] * 12


def test_several_labels_a_clip_have_no_confusion_matrix():
    several = Evaluation(torch.zeros(2, 3), torch.tensor([[1, 0, 1], [0, 1, 0]]), ["a", "b", "c"])
    with pytest.raises(ValueError, match="one label a clip"): ConfusionExplorer(several, [np.zeros((4, 32, 32, 3), np.uint8)] * 2)
