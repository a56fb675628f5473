"""Guessing the picture size of a `.dat` of unknown origin from its bits.

Neighbouring rows of a picture resemble each other, and so do neighbouring steps. In the stream of
bits a row comes `width` bits after the one before it, and the same pixel comes back every
height x width bits. Both show as peaks of the stream's autocorrelation, which one Fourier transform
gives for every distance at once.
"""

import dataclasses
import os
import pathlib

import numpy as np

from vrtspike_jax.spikes.dat import DatError, MissingDatError

# (height, width, head columns): the cameras' own sizes and those of the published data sets.
KNOWN_SIZES = (
    (250, 400, 0),  # first Vidar camera; SpikeCV, Spike-Zoo, spike-REDS
    (250, 400, 16),  # the same with a head
    (360, 640, 0),  # GoPro + spike
    (384, 384, 0),  # X4K1000FPS + spike, training crops at half resolution
    (256, 256, 0),  # X4K1000FPS + spike, validation crops at half resolution
    (1080, 2048, 0),  # X4K1000FPS + spike, whole test frames at half resolution
    (1000, 1000, 0),  # second camera generation (SPS100)
    (720, 1280, 0),
    (480, 640, 0),
)
_SAMPLE_BYTES = 1 << 19
_MAX_CANDIDATES = 20_000


@dataclasses.dataclass(frozen=True)
class SizeGuess:
    """One size that a file could have.

    Attributes:
      height, width, head_columns: arguments for `read_dat`.
      num_frames: steps that the file would hold.
      score: correlation of neighbouring rows plus that of neighbouring steps, -2..2. The right
        size stands out; 0 is what noise gives.
      known: whether it is the size of a camera or a published data set.
    """

    height: int
    width: int
    head_columns: int
    num_frames: int
    score: float
    known: bool


def plausible_sizes(path: str | os.PathLike[str], limit: int = 8) -> list[SizeGuess]:
    """Ranks the sizes that divide a `.dat` file into whole steps, likeliest first.

    Known sizes come first if their score is within reach of the best one.

    Args:
      path: the file.
      limit: how many guesses to return at most.

    Returns:
      At most `limit` guesses; empty if no sensible size divides the file.

    Raises:
      DatError: the file is missing or empty.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingDatError(f"{path}: no such spike file")
    size = path.stat().st_size
    if not size:
        raise DatError(f"{path}: found an empty file, wanted spikes")
    correlation = _autocorrelation(np.fromfile(path, np.uint8, min(size, _SAMPLE_BYTES)))
    known = {
        (height, width + head): (height, width, head)
        for height, width, head in reversed(KNOWN_SIZES)
    }
    guesses = []
    for height, row_bits in _divisions(size, set(known)):
        _, width, head = known.get((height, row_bits), (height, row_bits, 0))
        frames = size // (height * row_bits // 8)
        score = _score(correlation, height, row_bits, frames)
        guesses.append(SizeGuess(height, width, head, frames, score, (height, row_bits) in known))
    best = max((guess.score for guess in guesses), default=0.0)

    def bits(guess: SizeGuess) -> int:
        return guess.height * (guess.width + guess.head_columns)

    def favoured(guess: SizeGuess) -> bool:
        # A small picture repeats at multiples of its size, some of which are known sizes.
        return (
            guess.known
            and guess.score > 0.7 * best
            and not any(g.score > guess.score and bits(guess) % bits(g) == 0 for g in guesses)
        )

    def rank(guess: SizeGuess) -> tuple:
        # Of about equally likely sizes, the smallest.
        among_best = guess.score > 0.85 * best
        return (
            not favoured(guess),
            not among_best,
            bits(guess) if among_best else 0,
            -guess.score,
        )

    return sorted(guesses, key=rank)[:limit]


def _divisions(size: int, known: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """(height, stored row bits) of whole steps, with rows of whole bytes and a sane aspect."""
    found = [
        (height, row)
        for height, row in known
        if height * row % 8 == 0 and size % (height * row // 8) == 0
    ]
    # A step of h x w bits has h * (w / 8) bytes, and that number divides the file's size.
    for row_bytes in range(4, 513):
        if size % row_bytes:
            continue
        row = row_bytes * 8
        for height in range(max(16, row // 4), 2 * row + 1):
            if size // row_bytes % height == 0 and (height, row) not in known:
                found.append((height, row))
    return found[:_MAX_CANDIDATES]


def _autocorrelation(packed: np.ndarray) -> np.ndarray:
    """Correlation of the bit stream with itself at every distance: [bits] float32, 1 at 0."""
    bits = np.unpackbits(packed, bitorder="little").astype(np.float32)
    bits -= bits.mean()
    length = 1 << int(2 * len(bits) - 1).bit_length()
    spectrum = np.fft.rfft(bits, length)
    products = np.fft.irfft(np.abs(spectrum) ** 2, length)[: len(bits)]
    overlap = np.arange(len(bits), 0, -1)
    variance = products[0] / len(bits)
    # A dark or saturated stream has no variance to speak of.
    return (products / overlap / max(variance, 1e-9)).astype(np.float32)


def _score(correlation: np.ndarray, height: int, row: int, frames: int) -> float:
    rows = correlation[row] if row < len(correlation) // 2 else 0.0
    # One step alone would mislead, as a pixel that has just fired rests: the median of several.
    frame = height * row
    repeats = np.arange(1, min(frames, 24)) * frame
    repeats = repeats[repeats < len(correlation) // 2]
    steps = float(np.median(correlation[repeats])) if len(repeats) else 0.0
    return float(rows) + steps
