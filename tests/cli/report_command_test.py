import html
import json
import re

import browser
import cv2
import numpy as np
import pytest
import world

NASTY = "\"><script>alert(1)</script>&amp;'<b>"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, checkpoint):
    """The page of an evaluation with an ill-meaning sequence name, and its metrics."""
    from typer.testing import CliRunner

    from vrtspike_jax.cli.app import app

    folder = tmp_path_factory.mktemp("report")
    world.write_dataset(folder / "set", sequences=("plain", NASTY.replace("/", "")), count=4)
    commands = [
        ["evaluate", "--data", folder / "set", "--checkpoint", checkpoint, "--out", folder / "out"],
        ["report", folder / "out", "--out", folder / "report.html", "--title", NASTY],
    ]
    for command in commands:
        result = CliRunner().invoke(app, [str(arg) for arg in command])
        assert result.exit_code == 0, result.output
    return folder / "report.html", json.loads((folder / "out" / "metrics.json").read_text())


def test_the_page_holds_every_number_and_nothing_from_outside(evaluation):
    path, metrics = evaluation
    text = path.read_text()
    for method in metrics["mean"].values():
        assert f"<td>{method['psnr_rgb']:.2f}</td>" in text
        assert f"<td>{method['ssim_y']:.4f}</td>" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert text.count("<polyline") >= 4 * 2 + 2  # four methods, two sequences, and the rates


def test_names_are_text_and_never_markup(evaluation):
    text = evaluation[0].read_text()
    assert NASTY not in text and "<script>alert" not in text
    assert html.escape(NASTY) in text
    assert text.count("<script>") == 1


def test_a_deblur_run_has_a_page_too(vrtspike, checkpoint, tmp_path):
    blur, spikes, _ = world.write_sequence(tmp_path, 6, (64, 80))
    run = tmp_path / "restored"
    result = vrtspike(
        "deblur", "--blur", blur, "--spikes", spikes, "--out", run, "--checkpoint", checkpoint
    )
    assert result.exit_code == 0, result.output
    page = tmp_path / "page.html"
    result = vrtspike("report", run, "--out", page, "--clips", 3)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count('class="compare"') == 3
    assert "What restoring changed: mean 0.0000" in text  # the model gives the frames back
    again = vrtspike("report", run, "--out", page)
    assert again.exit_code == 2 and "nothing is overwritten" in again.stderr


def _unfinished(run):
    record = json.loads((run / "deblur.json").read_text())
    (run / "deblur.json").write_text(json.dumps(record | {"state": "running"}))
    return "not finished"


def _elsewhere(run):
    record = json.loads((run / "deblur.json").read_text())
    record["names"][0] = "../../secret"
    (run / "deblur.json").write_text(json.dumps(record))
    return "wanted one inside the folder"


def _not_a_record(run):
    (run / "deblur.json").write_text('{"state": "done"}')
    return "not what this version writes"


def _no_run(run):
    (run / "deblur.json").unlink()
    return "found neither metrics.json"


@pytest.mark.parametrize("spoil", [_unfinished, _elsewhere, _not_a_record, _no_run])
def test_a_bad_run_is_one_line_and_code_2(vrtspike, checkpoint, tmp_path, spoil):
    blur, spikes, _ = world.write_sequence(tmp_path, 2, (64, 64))
    run = tmp_path / "restored"
    args = ("--blur", blur, "--spikes", spikes, "--out", run, "--checkpoint", checkpoint)
    assert vrtspike("deblur", *args).exit_code == 0
    message = spoil(run)
    result = vrtspike("report", run, "--out", tmp_path / "page.html")
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "page.html").exists()


needs_browser = pytest.mark.skipif(
    browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is installed"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def _complaints(page):
    """Errors of scripts, refused resources, and requests that leave the file."""
    found = []
    for event in page.events:
        if event["method"] in ("Runtime.exceptionThrown", "Network.loadingFailed"):
            found.append(event)
        if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            found.append(event)
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                found.append(url)
    return found


@needs_browser
def test_in_a_browser_the_keyboard_moves_the_slider(page, evaluation):
    page.events.clear()
    page.open(evaluation[0], 1200, 900)
    assert not _complaints(page)
    assert page.run("document.querySelectorAll('.compare').length") == 2
    assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    # Nothing but Tab, until the first slider has the focus.
    for _ in range(20):
        page.press("Tab", 9)
        if page.run("document.activeElement.type") == "range":
            break
    assert page.run("document.activeElement.type") == "range"
    assert (
        page.run("getComputedStyle(document.activeElement.parentElement).outlineStyle") == "solid"
    )
    assert page.run("document.activeElement.value") == "50"
    page.press("ArrowRight", 39, times=10)
    assert page.run("document.activeElement.value") == "60"
    assert page.run("document.activeElement.parentElement.style.getPropertyValue('--cut')") == "60%"
    spoken = page.run("document.activeElement.getAttribute('aria-valuetext')")
    assert spoken == "60% blurred, 40% restored"
    page.press("Tab", 9)
    assert page.run("document.activeElement.dataset.side") == "left"


def _seen(page, number):
    """The picture in a slider, as it is on the screen."""
    box = page.run(
        f"(() => {{const s = document.querySelectorAll('.stage')[{number}]; s.scrollIntoView();"
        "const b = s.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]})()"
    )
    x, y, width, height = (round(value) for value in box)
    image = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB)
    return image[y : y + height, x : x + width].astype(float), box


def _set(page, number, **values):
    for side, kind in values.items():
        page.run(
            f"(() => {{const s = document.querySelectorAll('.compare')[{number}]"
            f".querySelector('[data-side={side}]'); s.value = '{kind}';"
            "s.dispatchEvent(new Event('change'))})()"
        )


@needs_browser
def test_in_a_browser_the_slider_shows_left_of_it_one_and_right_of_it_the_other(page, evaluation):
    page.open(evaluation[0], 800, 1000)
    _set(page, 0, left="sharp", right="tfp")
    seen, _ = _seen(page, 0)
    width = seen.shape[1]
    _set(page, 0, left="sharp", right="sharp")
    sharp, _ = _seen(page, 0)
    _set(page, 0, left="tfp", right="tfp")
    spikes, _ = _seen(page, 0)
    left, right = slice(10, width // 2 - 30), slice(width // 2 + 30, width - 10)
    assert np.abs(seen[:, left] - sharp[:, left]).mean() < 1
    assert np.abs(seen[:, right] - spikes[:, right]).mean() < 1
    assert np.abs(sharp - spikes).mean() > 10


@needs_browser
def test_on_a_phone_it_fits_and_a_finger_moves_the_slider(page, evaluation):
    page.open(evaluation[0], 360, 740, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 360
    _, (x, y, width, height) = _seen(page, 0)
    page.touch(x + 0.8 * width, y + height / 2)
    value = int(page.run("document.querySelector('.stage input').value"))
    assert 70 <= value <= 90


@needs_browser
def test_without_scripts_nothing_is_lost_but_the_slider(page, evaluation):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.open(evaluation[0], 800, 900)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.querySelectorAll('table tbody tr').length") == 5 * 3
    shown = "[...document.querySelectorAll('.stage img')].some(i => getComputedStyle(i).visibility"
    assert page.run(f"{shown} === 'visible')")


@needs_browser
def test_on_a_phone_every_score_is_seen_without_scrolling_sideways(page, evaluation):
    page.open(evaluation[0], 360, 740, mobile=True)
    wide = "document.querySelector('.wide')"
    assert page.run(f"{wide}.scrollWidth - {wide}.clientWidth") == 0
    boxes = "[...document.querySelectorAll('td, select')].map(e => e.getBoundingClientRect().right)"
    assert page.run(f"Math.max(...{boxes})") <= 360


@needs_browser
def test_in_the_dark_text_stays_readable(page, evaluation):
    """WCAG's contrast of text and emphasis against the background, at least 4.5 to 1."""
    luminance = (
        "c => c.match(/\\d+/g).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 :"
        "((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)"
    )
    backgrounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.open(evaluation[0], 800, 900)
        back = page.run(f"({luminance})(getComputedStyle(document.body).backgroundColor)")
        backgrounds.append(back)
        for part in ("h1", "dd", "tbody td", "tr.restored td", "figcaption", "svg text"):
            style = f"getComputedStyle(document.querySelector('{part}'))"
            value = f"{style}.fill" if part == "svg text" else f"{style}.color"
            front = page.run(f"({luminance})({value})")
            contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
            assert contrast >= 4.5, f"{part} in the {scheme}: {contrast:.1f}"
    page.call("Emulation.setEmulatedMedia", features=[])
    assert backgrounds[0] > 0.9 and backgrounds[1] < 0.05
