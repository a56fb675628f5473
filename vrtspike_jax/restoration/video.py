"""Frames from and to video files, through the ffmpeg that imageio-ffmpeg brings along."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
WRITABLE = (".mp4", ".mov", ".mkv", ".m4v")  # take H.264


class VideoFrames:
    """The frames of a video, decoded once from beginning to end as 8-bit RGB.

    Attributes:
      names: "00000000", "00000001", ...
      size: (height, width) in pixels, as shown (a rotation mark is applied).
      dtype: uint8.
      fps: frames a second.
      readers: 1, a video is decoded in order.

    Raises:
      ValueError: no such file, or no readable video.
    """

    dtype = np.dtype(np.uint8)
    readers = 1

    def __init__(self, path: Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: no such video")
        try:
            count, _ = imageio_ffmpeg.count_frames_and_secs(str(self.path.absolute()))
            self._open()
        except (RuntimeError, OSError, StopIteration) as error:
            raise ValueError(f"{path}: no readable video ({_reason(error)})") from None
        if count < 1:
            raise ValueError(f"{path}: found a video without frames")
        self.names = [f"{index:08d}" for index in range(count)]
        self._lock = threading.Lock()

    def _open(self) -> None:
        # Every stored frame exactly once, even where their times are irregular.
        self._decoder = imageio_ffmpeg.read_frames(
            str(self.path.absolute()), output_params=["-fps_mode", "passthrough"]
        )
        meta = next(self._decoder)
        width, height = meta["size"]
        self.size, self.fps = (height, width), float(meta["fps"])
        self._next = 0

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as RGB, [H,W,3]; indices must ascend.

        Raises:
          ValueError: the video ends before it.
        """
        with self._lock:
            if index < self._next:
                raise ValueError(f"{self.path}: frame {index} was asked for after a later one")
            data = None
            while self._next <= index:
                data = next(self._decoder, None)
                if data is None:
                    raise ValueError(
                        f"{self.path}: the video ends early: found {self._next} frames, wanted "
                        f"{len(self)}; the file is damaged"
                    )
                self._next += 1
        return np.frombuffer(data, np.uint8).reshape(*self.size, 3)

    def close(self) -> None:
        """Ends the decoder."""
        self._decoder.close()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def video_writer(
    path: Path, size: tuple[int, int], fps: float, crf: int = 12, codec: str = "libx264"
) -> Iterator[object]:
    """Writes a video that appears under its name only once it is complete.

    Yields a function that takes frames, uint8 RGB [H,W,3], one after the other.

    Args:
      path: the file to write, with a video's ending.
      size: (height, width). Odd sizes are stored without chroma subsampling, which not every
        player shows.
      fps: frames a second.
      crf: quality of H.264, 0 (lossless) to 51; 12 looks like the original.
      codec: of ffmpeg.

    Raises:
      ValueError: the folder is missing or cannot be written.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    height, width = size
    even = height % 2 == 0 and width % 2 == 0
    try:
        partial.touch()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    encoder = imageio_ffmpeg.write_frames(
        str(partial),
        (width, height),
        fps=fps,
        codec=codec,
        quality=None,
        macro_block_size=1,
        pix_fmt_out="yuv420p" if even else "yuv444p",
        output_params=["-crf", str(crf), "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )

    def send(frame: np.ndarray | None) -> None:
        try:
            encoder.send(frame)
        except OSError as error:
            raise ValueError(f"{path}: cannot be encoded: {_reason(error)}") from None

    try:
        send(None)  # starts the encoder
        yield lambda frame: send(np.ascontiguousarray(frame))
        encoder.close()
        partial.replace(path)
    finally:
        encoder.close()
        partial.unlink(missing_ok=True)
