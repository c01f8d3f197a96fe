"The player in a real browser: an exported page opened from a file, and notebook 16 in JupyterLab. Skipped where there is no Chromium."
import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from stasta_edu.widgets import Heat, Outline, Panel, Player, Segment, Track, Vectors, page_html, unpack_maps

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
SECOND = 1000
PATIENCE = 40 * SECOND  # two slow cores may be all there is

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def playwright():
    with playwright_api.sync_playwright() as p: yield p


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS[1:])
    yield browser
    browser.close()


# ---------------------------------------------------------------- an exported page

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
SEEN = [1, 4, 7, 10, 13, 16, 19, 22]


def ball_scene(n=24, size=64):
    "A ball that flies to the right, with one overlay of each kind and two tracks."
    y, x = np.mgrid[:size, :size] + 0.5
    centre_x = 8 + 2.0 * np.arange(n)
    distance = np.hypot(x - centre_x[:, None, None], y - 32)  # (T, H, W)
    masks = (distance < 8).astype(np.uint8)
    clip = np.where(masks[..., None] > 0, (240, 190, 60), (40, 50, 80)).astype(np.uint8)
    grid = np.arange(8) * 8 + 4
    heat = np.exp(-(np.hypot(grid[None, None] - centre_x[SEEN, None, None], grid[None, :, None] - 32) / 12) ** 2) * np.linspace(0.3, 1, 8)[:, None, None]
    motion = np.stack([2.0 * masks[:-1], 0 * masks[:-1]], 1)
    actions = [Segment(0, 24, "fly <b>right</b>"), Segment(8, 12, EVIL, decisive=True)]
    panels = [Panel(clip, [Outline(masks, ["<i>ball</i>"])], "clip"), Panel(clip, [Vectors(motion, title="true motion", at=range(n - 1))], "motion"),
              Panel(clip, [Heat(heat, "Grad-CAM", at=SEEN)], EVIL)]
    return Player(panels, [Track("importance", np.linspace(-0.5, 0.5, 8), actions, at=SEEN), Track("actions", segments=actions)], title=EVIL)


class Watch:
    "Collects what a page complains of and whatever it asks the network for."

    def __init__(self, page):
        self.page, self.errors, self.requests = page, [], []
        page.on("console", lambda message: message.type in ("error", "warning") and "willReadFrequently" not in message.text and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


def open_page(browser, path, **context):
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
    page.set_default_timeout(PATIENCE)
    watch = Watch(page)
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.sta[data-ready]').length === document.querySelectorAll('[data-stasta-player]').length")
    return page, watch


PIXELS = """canvas => {
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let hash = 0;
  for (let i = 0; i < data.length; i++) hash = (hash * 31 + data[i]) | 0;
  return hash;
}"""


def frame(page): return int(page.locator(".sta").first.get_attribute("data-frame"))
def pixels(page, panel=0): return page.locator(".sta canvas[role=img]:not(.sta-wheel)").nth(panel).evaluate(PIXELS)


@pytest.fixture
def ball_page(browser, tmp_path):
    page, watch = open_page(browser, ball_scene().to_html(tmp_path / "ball.html"))
    yield page
    assert watch.errors == []
    assert watch.requests == [(tmp_path / "ball.html").as_uri()], "nothing but the file itself is loaded"
    assert page.evaluate("window.hacked") is None, "a label was run as code"
    page.close()


def test_keys_step_and_pixels_change(ball_page):
    before = [pixels(ball_page, k) for k in range(3)]
    ball_page.locator(".sta-panels").focus()
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("PageDown", 11), ("End", 23), ("ArrowRight", 23), ("Home", 0), ("ArrowLeft", 0)):
        ball_page.keyboard.press(key)
        assert frame(ball_page) == expected, key
    assert [pixels(ball_page, k) for k in range(3)] == before, "back at the first frame, the same picture"
    ball_page.keyboard.press("End")
    assert all(a != b for a, b in zip(before, [pixels(ball_page, k) for k in range(3)]))


def test_numbers_and_labels(ball_page):
    ball_page.locator(".sta-slider").focus()
    for _ in range(6): ball_page.keyboard.press("ArrowRight")
    assert ball_page.locator(".sta-time").inner_text().split() == ["6", "/", "23", "0.50", "s"]
    assert ball_page.locator(".sta-slider").get_attribute("aria-valuetext") == "frame 6 of 23, 0.50 seconds"
    assert ball_page.locator(".sta-when").nth(2).inner_text() == "map of frame 7"
    assert ball_page.locator(".sta-value").nth(0).inner_text() == "\u22120.214"  # the value at frame 7, the nearest that was seen
    assert ball_page.locator(".sta-value").nth(1).inner_text() == "fly <b>right</b>"
    assert ball_page.locator(".sta-mark").count() == 8
    assert ball_page.locator(".sta h3").inner_text() == EVIL
    nameless = ball_page.locator(".sta button, .sta input, .sta select, .sta canvas, .sta svg[role=img]").evaluate_all(
        "all => all.filter(e => !(e.getAttribute('aria-label') || e.closest('label') || e.textContent.trim())).map(e => e.outerHTML.slice(0, 80))")
    assert nameless == []


def test_space_plays_and_pauses(ball_page):
    ball_page.locator(".sta-panels").focus()
    ball_page.keyboard.press("Space")
    ball_page.wait_for_function("document.querySelector('.sta').dataset.frame > 3")
    assert ball_page.locator(".sta-play").get_attribute("aria-label").startswith("Pause")
    ball_page.keyboard.press("Space")
    at = frame(ball_page)
    ball_page.wait_for_timeout(300)
    assert frame(ball_page) == at and ball_page.locator(".sta").get_attribute("data-playing") == "false"


def test_play_stops_at_the_end_without_loop_and_goes_on_with_it(ball_page):
    ball_page.locator("select[aria-label=Speed]").select_option("4")
    ball_page.get_by_label("Loop").click()
    ball_page.locator(".sta-play").click()
    ball_page.wait_for_function("document.querySelector('.sta').dataset.playing === 'false'")
    assert frame(ball_page) == 23
    ball_page.get_by_label("Loop").click()
    ball_page.locator(".sta-play").click()
    ball_page.wait_for_function("() => { const f = +document.querySelector('.sta').dataset.frame; const turned = f < (window.last ?? 0); window.last = f; return turned; }")
    assert ball_page.locator(".sta").get_attribute("data-playing") == "true"


def test_drag_the_slider(ball_page):
    box = ball_page.locator(".sta-slider").bounding_box()
    y = box["y"] + box["height"] / 2
    ball_page.mouse.move(box["x"] + 8, y)
    ball_page.mouse.down()
    met = []
    for part in (0.25, 0.5, 0.75, 1.0):
        ball_page.mouse.move(box["x"] + 8 + part * (box["width"] - 16), y)
        met.append(frame(ball_page))
    ball_page.mouse.up()
    assert met == sorted(met) and met[-1] == 23 and 9 <= met[1] <= 14


def test_click_and_drag_on_a_track(ball_page):
    for number, part, expected in ((0, 0.5, 12), (1, 0.02, 0), (1, 0.9, 21)):
        ball_page.locator(".sta-track").nth(number).scroll_into_view_if_needed()
        box = ball_page.locator(".sta-track").nth(number).bounding_box()
        ball_page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        assert frame(ball_page) == expected
    ball_page.keyboard.press("ArrowRight")  # the keyboard works on from where the mouse was
    assert frame(ball_page) == 22


def test_overlays_can_be_dimmed_and_hidden(ball_page):
    ball_page.locator(".sta-panels").focus()
    for _ in range(7): ball_page.keyboard.press("ArrowRight")
    for k, name in ((0, "things"), (1, "true motion"), (2, "Grad-CAM")):
        full = pixels(ball_page, k)
        opacity = ball_page.get_by_label(f"Opacity of {name}")
        opacity.focus()
        ball_page.keyboard.press("ArrowLeft")
        assert frame(ball_page) == 7, "the opacity slider keeps its own arrow keys"
        dimmed = pixels(ball_page, k)
        ball_page.get_by_label(name, exact=True).uncheck()
        hidden = pixels(ball_page, k)
        assert len({full, dimmed, hidden}) == 3
    shown = pixels(ball_page, 1)
    ball_page.get_by_label("true motion", exact=True).check()
    arrows = pixels(ball_page, 1)
    ball_page.get_by_text("show colours").click()
    assert len({shown, arrows, pixels(ball_page, 1)}) == 3 and ball_page.locator(".sta-wheel").count() == 1


def test_the_browser_paints_what_python_paints(browser, tmp_path):
    "The player's overlay and the still's are two programs; on a plain grey clip they must give the same picture."
    from PIL import Image
    from stasta_edu.widgets import _DRAW
    grey = np.full((8, 64, 64, 3), 120, np.uint8)
    for name, maps, limit in (("heat", np.random.default_rng(0).uniform(0, 1, (8, 8, 8)), 3), ("signed", np.random.default_rng(1).normal(size=(8, 8, 8)), 3)):
        scene = Player([Panel(grey, [Heat(maps, name)])])
        page, _ = open_page(browser, scene.to_html(tmp_path / f"{name}.html"))
        canvas = page.locator(".sta canvas")
        png = canvas.evaluate("c => c.toDataURL('image/png').split(',')[1]")
        theirs = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), np.float32)
        layer = scene.spec["panels"][0]["layers"][0]
        ours = np.asarray(_DRAW["heat"](Image.new("RGB", theirs.shape[1::-1], (120,) * 3), layer, unpack_maps(layer)[0]), np.float32)
        assert np.abs(theirs - ours).mean() < limit, name
        page.close()


def test_one_frame_and_many_players(browser, tmp_path):
    one = Player([Panel(np.zeros((1, 8, 8), np.uint8))], [Track("curve", [0.5])], title="One frame")
    path = tmp_path / "page.html"
    path.write_text(page_html("Players", [one, ball_scene(), ball_scene()]), encoding="utf-8")
    page, watch = open_page(browser, path, color_scheme="dark")
    assert page.locator(".sta-slider").first.is_disabled()
    page.locator(".sta-play").first.click()
    assert frame(page) == 0 and page.locator(".sta").first.get_attribute("data-playing") == "false"
    page.locator(".sta-panels").nth(1).focus()
    page.keyboard.press("End")
    assert [p.get_attribute("data-frame") for p in page.locator(".sta").all()] == ["0", "23", "0"], "each player keeps its own time"
    assert watch.errors == [] and "NaN" not in page.locator("main").inner_html()
    page.close()


@pytest.mark.parametrize("width", [700, 1280, 1920])
def test_nothing_sticks_out(browser, tmp_path, width):
    page, _ = open_page(browser, ball_scene().to_html(tmp_path / "ball.html"), viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    out = page.evaluate("""() => { const r = document.querySelector('.sta').getBoundingClientRect();
        return [...document.querySelectorAll('.sta :is(button, input, select, canvas, .sta-value, .sta-time)')]
            .filter(e => { const b = e.getBoundingClientRect(); return b.width && (b.left < r.left || b.right > r.right + 0.5); }).map(e => e.className); }""")
    assert out == []
    page.close()


def test_frames_a_second(browser, tmp_path, record_property, capsys):
    "64 frames of 224 x 224 with a heat map, asked for 30 and 60 a second: how many are shown. Recorded; only a standstill fails."
    rng = np.random.default_rng(0)
    clip = (rng.integers(0, 256, (1, 224, 224, 3)) // 2 + np.linspace(0, 120, 64)[:, None, None, None]).astype(np.uint8)
    scene = Player([Panel(clip, [Heat(rng.uniform(size=(8, 14, 14)), "heat", at=range(4, 64, 8))])], fps=30)
    page, watch = open_page(browser, scene.to_html(tmp_path / "fps.html"))
    counter = """async () => { const root = document.querySelector('.sta'); let shown = 0, last = root.dataset.frame; const start = performance.now();
        const watch = new MutationObserver(() => { if (root.dataset.frame !== last) { shown++; last = root.dataset.frame; } });
        watch.observe(root, {attributes: true, attributeFilter: ['data-frame']});
        await new Promise(done => setTimeout(done, 2000)); watch.disconnect(); return shown / (performance.now() - start) * 1000; }"""
    page.locator(".sta-play").click()
    page.wait_for_timeout(300)
    rates = {30: page.evaluate(counter)}
    page.locator("select[aria-label=Speed]").select_option("2")
    rates[60] = page.evaluate(counter)
    text = ", ".join(f"{rate:.1f} shown of {asked} asked" for asked, rate in rates.items())
    record_property("frames_per_second", text)
    with capsys.disabled(): print(f"\n    64 frames of 224 x 224, frames a second: {text}")
    assert rates[30] > 3 and watch.errors == []
    page.close()


# ---------------------------------------------------------------- notebook 16 in JupyterLab

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on loopback with folders of its own; yields its address."
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install 'stasta_edu[lab]'")
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    shutil.copy(ROOT / "nbs" / "16_widgets.ipynb", home / "work")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
           "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
           "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    log = (home / "log.txt").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                               "--ServerApp.port_retries=0", "--IdentityProvider.token=open", f"--ServerApp.root_dir={home / 'work'}"], env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            if server.poll() is not None: pytest.fail(f"JupyterLab ended: {(home / 'log.txt').read_text()[-2000:]}")
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=open", timeout=5).close(); break
            except OSError: time.sleep(0.2)
        else: pytest.fail("JupyterLab did not start within a minute")
        yield f"http://127.0.0.1:{port}/lab/tree/16_widgets.ipynb?token=open&reset"
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill()
        log.close()


@pytest.fixture(scope="module")
def notebook(playwright, lab, tmp_path_factory):
    "Notebook 16, all cells run."
    context = playwright.chromium.launch_persistent_context(tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=False, args=FLAGS,
                                                            viewport={"width": 1280, "height": 900})
    page = context.pages[0]
    page.set_default_timeout(PATIENCE)
    page.watch = Watch(page)
    page.goto(lab)
    page.wait_for_function("""() => /\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText ?? '')
        && !/No Kernel/.test(document.querySelector('.jp-NotebookPanel-toolbar')?.innerText ?? 'No Kernel')""")
    page.get_by_role("menuitem", name="Run", exact=True).first.click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    page.wait_for_function("""() => { const all = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.innerText);
        return all.length > 10 && all.every(text => /\\[\\d+\\]/.test(text)); }""", timeout=2 * PATIENCE)
    yield page
    context.close()


def cell_with(page, text): return page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea", has_text=text)).last


def test_notebook_runs_without_an_error(notebook):
    assert notebook.locator("[data-mime-type='application/vnd.jupyter.stderr']", has_text="Traceback (most recent call last").count() == 0
    notebook.wait_for_function("document.querySelectorAll('.sta[data-ready]').length >= 5")
    assert notebook.locator(".sta-error").count() == 0
    assert "Error displaying widget" not in notebook.locator(".jp-Notebook").inner_text()


def test_keys_belong_to_the_player(notebook):
    cell = cell_with(notebook, "FrameScrubber(channels_first")
    player = cell.locator(".sta")
    player.scroll_into_view_if_needed()
    player.locator(".sta-slider").focus()
    cells, before = notebook.locator(".jp-Cell").count(), player.locator("canvas").first.evaluate(PIXELS)
    for key, expected in (("ArrowRight", "1"), ("ArrowDown", "0"), ("End", "23"), ("ArrowLeft", "22"), ("Home", "0"), ("ArrowUp", "1")):
        notebook.keyboard.press(key)
        assert player.get_attribute("data-frame") == expected, key
    player.locator(".sta-panels").focus()
    notebook.keyboard.press("ArrowRight")
    assert player.get_attribute("data-frame") == "2"
    assert player.locator("canvas").first.evaluate(PIXELS) != before
    notebook.keyboard.press("Space")
    notebook.wait_for_function("player => player.dataset.frame > 5", arg=player.element_handle())
    notebook.keyboard.press("Space")
    for key in "ab": notebook.keyboard.press(key)  # these would insert cells in JupyterLab's command mode
    assert notebook.locator(".jp-Cell").count() == cells


def test_another_class_is_computed_by_the_kernel(notebook, record_property, capsys):
    player = cell_with(notebook, "view = GradCamView").locator(".sta")
    player.scroll_into_view_if_needed()
    select = player.locator("select[aria-label='speaks for']")
    options = [option.get_attribute("value") for option in select.locator("option").all()]
    assert len(options) == 4
    seen, before = {}, player.locator("canvas").nth(1).evaluate(PIXELS)
    for value in options[::-1]:
        select.select_option(value)
        notebook.wait_for_function("([p, value]) => p.dataset.chosen === value && !p.getAttribute('aria-busy')", arg=[player.element_handle(), value])
        seen[value] = player.locator("canvas").nth(1).evaluate(PIXELS)
    assert len(set(seen.values()) | {before}) >= 3, "another class, another map"
    answered = player.get_attribute("data-answered")
    record_property("round_trip_ms", answered)
    with capsys.disabled(): print(f"\n    another class through the kernel: {answered} ms")


def test_light_and_dark_theme(notebook):
    player = cell_with(notebook, "FrameScrubber(channels_first").locator(".sta")
    colour = lambda: [int(v) for v in re.findall(r"\d+", player.evaluate("p => getComputedStyle(p).color"))[:3]]
    assert sum(colour()) < 300, "dark ink in the light theme"
    notebook.evaluate("document.body.dataset.jpThemeLight = 'false'; document.body.style.setProperty('--jp-ui-font-color0', '')")
    assert player.evaluate("p => getComputedStyle(p).colorScheme") == "dark"
    notebook.evaluate("document.body.dataset.jpThemeLight = 'true'")


def test_the_console_stays_quiet(notebook):
    assert [error for error in notebook.watch.errors if "Failed to load resource" not in error] == []
    elsewhere = [url for url in notebook.watch.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert elsewhere == [], "JupyterLab and the widgets ask no other machine"
