"""The page itself: HTML with its styles, script and pictures inside, nothing fetched from outside.

Every text that comes from a file or a name goes through `escape`. A content security policy forbids
the page to load anything and to run any script but its own.
"""

import base64
import hashlib
from html import escape
from importlib import resources

import cv2
import numpy as np

from vrtspike_jax.evaluation import METHODS
from vrtspike_jax.report.charts import line_chart
from vrtspike_jax.report.content import KINDS, Clip, Content, Curve

METRIC_NAMES = {
    "psnr_rgb": "PSNR RGB (dB)",
    "psnr_y": "PSNR Y (dB)",
    "ssim_rgb": "SSIM RGB",
    "ssim_y": "SSIM Y",
    "lpips": "LPIPS",
}
# Error that is shown brightest, in units of white.
BRIGHTEST_ERROR = 0.2
JPEG_QUALITY = 88


def render(content: Content, title: str, widest: int = 1280) -> str:
    """The page as HTML.

    Args:
      content: from `content.read`.
      title: its heading.
      widest: pictures are shrunk to this width in pixels.
    """
    files = resources.files("vrtspike_jax.report")
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(content.facts)}</header><main>",
        _scores(content),
        *(_clip(number, clip, widest) for number, clip in enumerate(content.clips)),
        _curves(content),
        "</main>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"{''.join(body)}<script>{script}</script></body></html>\n"
    )


def _facts(facts: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _scores(content: Content) -> str:
    if not content.means:
        return ""
    metrics = [m for m in METRIC_NAMES if m in next(iter(content.means.values()))]
    head = "".join(f'<th scope="col">{METRIC_NAMES[m]}</th>' for m in metrics)
    many = len(content.sequences) > 1
    rows = _rows("mean over sequences", content.means, metrics) if many else ""
    for name, (count, means) in content.sequences.items():
        rows += _rows(f"{name} ({count} frame{'' if count == 1 else 's'})", means, metrics)
    return (
        '<section aria-labelledby="scores"><h2 id="scores">Scores</h2>'
        '<div class="wide" tabindex="0" role="region" aria-label="Table of scores"><table>'
        '<thead><tr><th scope="col">frames</th>'
        f"{head}</tr></thead>{rows}</table></div></section>"
    )


def _rows(sequence: str, means: dict[str, dict[str, float]], metrics: list[str]) -> str:
    """A sequence's methods, under its name."""
    width = len(metrics) + 1
    rows = [f'<tr><th scope="rowgroup" colspan="{width}">{escape(sequence)}</th></tr>']
    for method, scores in means.items():
        cells = "".join(f"<td>{scores[m]:.{2 if 'psnr' in m else 4}f}</td>" for m in metrics)
        emphasis = ' class="restored"' if method == "restored" else ""
        label = f'<th scope="row">{escape(METHODS[method])}</th>'
        rows.append(f"<tr{emphasis}>{label}{cells}</tr>")
    return f"<tbody>{''.join(rows)}</tbody>"


def _curves(content: Content) -> str:
    if not content.rates:
        return ""
    parts = []
    psnr = {curve.sequence: curve for curve in content.psnr}
    for curve in content.rates:
        if curve.sequence in psnr:
            parts.append(_curve(psnr[curve.sequence], "PSNR of each frame", "dB"))
        parts.append(_curve(curve, "Firing rate of each frame", "rate"))
    heading = '<section aria-labelledby="curves"><h2 id="curves">Frame by frame</h2>'
    return f'{heading}<div class="curves">{"".join(parts)}</div></section>'


def _curve(curve: Curve, what: str, unit: str) -> str:
    labels = {**METHODS, "spikes": "spikes a pixel and step"}
    means = ", ".join(
        f"{labels[name]} {np.mean(values):.3g} on average" for name, values in curve.lines.items()
    )
    chart = line_chart(curve.lines, labels, f"{what} of {curve.sequence}: {means}", "frame", unit)
    return f"<figure><figcaption>{what}: {escape(curve.sequence)}</figcaption>{chart}</figure>"


def _clip(number: int, clip: Clip, widest: int) -> str:
    kinds = [kind for kind in KINDS if kind in clip.pictures]
    right = next(kind for kind in ("restored", "sharp", "tfp", "blurred") if kind in kinds)
    name = f"{clip.sequence}, frame {clip.frame}"
    height, width = clip.pictures["blurred"].shape[:2]
    # Neither higher than the screen, nor small frames blown up to fill it.
    widest_shown = f"min(100%, {85 * width / height:.1f}vh, max(20rem, {3 * width}px))"
    fits, shape = f"max-width:{widest_shown}", f"aspect-ratio:{width}/{height}"
    # Without the script the two halves still show; it changes these classes.
    sides = {"blurred": ' class="left"', right: ' class="right"'}
    pictures = "".join(
        f'<img{sides.get(kind, "")} data-kind="{kind}" alt="{escape(f"{name}: {KINDS[kind]}")}" '
        f'src="{_data_uri(clip.pictures[kind], (width, height), widest)}">'
        for kind in kinds
    )
    return (
        f'<section class="clip" aria-labelledby="clip{number}"><h2 id="clip{number}">'
        f"{escape(name)}</h2>{_clip_scores(clip)}"
        f'<div class="compare" data-left="blurred" data-right="{right}" style="{fits}">'
        f'<div class="stage" style="{shape}">{pictures}'
        '<div class="handle" aria-hidden="true"></div>'
        '<input type="range" min="0" max="100" value="50" step="1" '
        f'aria-label="{escape(f"How much of the left picture to show, {name}")}"></div>'
        f'<div class="choices">{_choice("left", kinds, "blurred")}{_choice("right", kinds, right)}'
        "</div></div>"
        f'<div class="pair">{_error_map(clip, name, widest)}{_activity(clip, name)}</div></section>'
    )


def _clip_scores(clip: Clip) -> str:
    if not clip.scores:
        return ""
    texts = [
        f"{METHODS[m]} {clip.scores[m]['psnr_rgb']:.2f} dB" for m in METHODS if m in clip.scores
    ]
    return f"<p>PSNR RGB: {escape('; '.join(texts))}</p>"


def _choice(side: str, kinds: list[str], chosen: str) -> str:
    options = "".join(
        f'<option value="{kind}"{" selected" if kind == chosen else ""}>'
        f"{escape(KINDS[kind])}</option>"
        for kind in kinds
    )
    return f"<label>{side} <select data-side={side}>{options}</select></label>"


def _error_map(clip: Clip, name: str, widest: int) -> str:
    restored = clip.pictures.get("restored")
    if restored is None:
        return ""
    other = "sharp" if "sharp" in clip.pictures else "blurred"
    error = np.abs(restored.astype(np.float32) - clip.pictures[other]).mean(-1) / 255
    scaled = np.rint(np.clip(error / BRIGHTEST_ERROR, 0, 1) * 255).astype(np.uint8)
    picture = cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO)[..., ::-1]
    what = "Error of the restored frame" if other == "sharp" else "What restoring changed"
    caption = (
        f"{what}: mean {error.mean():.4f} of white; black is 0, yellow {BRIGHTEST_ERROR} and more"
    )
    size = (picture.shape[1], picture.shape[0])
    source = _data_uri(picture, size, widest // 2)
    return (
        f'<figure><img alt="{escape(f"{what}, {name}")}" src="{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _activity(clip: Clip, name: str) -> str:
    if not clip.activity:
        return ""
    mean = float(np.mean(clip.activity))
    chart = line_chart(
        {"spikes": clip.activity},
        {"spikes": "spikes"},
        f"Spike activity during the exposure of {name}: {mean:.3f} spikes a pixel and step",
        "spike step",
        "rate",
    )
    caption = f"Spike activity: {mean:.3f} spikes a pixel and step on average"
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _data_uri(picture: np.ndarray, size: tuple[int, int], widest: int) -> str:
    """A JPEG inside the page. Spike pictures, of another size, are enlarged to the frame's."""
    width = min(size[0], widest)
    wanted = (width, max(1, round(size[1] * width / size[0])))
    if (picture.shape[1], picture.shape[0]) != wanted:
        shrinks = wanted[0] < picture.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        picture = cv2.resize(picture, wanted, interpolation=how)
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), settings)[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
