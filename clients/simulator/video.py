"""A video of some episodes of a run side by side, drawn from their observations when the run is over: one picture at a time is kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clients.simulator.report import EpisodeResult
from clients.simulator.whole_file import replacing

Picture = NDArray[np.uint8]
"""RGB [height, width, 3], row 0 at the top."""
Draw = Callable[[NDArray[np.floating]], Picture]
"""Observation [S] -> picture of it."""

PICTURES_PER_S: Final = Fraction(25, 2)
SPEED: Final = 2.0
"""How many times faster than the robot the video is."""
HOLD_S: Final = 1.0
"""How long the last picture stays."""
LARGEST_PANELS: Final = 4
LINE = 32  # height of a line of the caption in pixels; even, as the encoding asks
PAPER, INK, PALE, GREY, DONE = "#ffffff", "#22262e", "#e8eaee", "#8a919e", "#0072b2"


@dataclass
class Panel:
    """One episode in the video: what became of it and its observations [T + 1, S]."""

    result: EpisodeResult
    path: NDArray[np.float32]
    _shown: int = field(default=-1, init=False)
    _picture: Picture = field(default_factory=lambda: np.empty((0, 0, 3), np.uint8), init=False)

    def picture(self, step: int, draw: Draw) -> Picture:
        """The episode after ``step`` steps; when it is over, its end."""
        step = min(step, len(self.path) - 1)
        if step != self._shown:
            self._shown, self._picture = step, draw(self.path[step])
        return self._picture

    def title(self, step: int, period_s: float, subtasks: int) -> tuple[str, str]:
        """Left and right part of the caption's first line."""
        step = min(step, len(self.path) - 1)
        left = f"episode {self.result.index}, {self.result.phase}, {step * period_s:.1f} s"
        if subtasks:
            return left, f"score {len(self.finished(step))} of {subtasks}"
        return left, self.result.outcome if step == len(self.path) - 1 else ""

    def finished(self, step: int) -> list[str]:
        """The subtasks that were finished by then."""
        return [name for name, at in (self.result.completed or {}).items() if at <= step]


def drawing_of(env: gym.Env[Any, Any]) -> Draw:
    """What draws observations of this environment, tried on one.

    Raises:
        ValueError: it cannot draw, here or at all; the message says what to install.
    """
    if not env.has_wrapper_attr("draw"):
        raise ValueError(f"{env.spec.id if env.spec else env} draws no pictures of its observations")
    draw: Draw = env.get_wrapper_attr("draw")
    try:
        draw(env.reset(seed=0)[0])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return draw


def check_encoder() -> None:
    """Raises ValueError when the library that writes videos is not installed."""
    if find_spec("av") is None:
        raise ValueError("expected PyAV, which writes videos, and it is not installed: pip install av; or leave out --video")


def write_video(file: Path, draw: Draw, panels: Sequence[Panel], *, period_s: float, subtasks: Sequence[str] = ()) -> Iterator[float]:
    """Write an MP4 (H.264) of the panels side by side, at twice the robot's speed. Yields the share that is done.

    Args:
        file: where it goes, when it is whole.
        draw: draws an observation; all pictures are of one size.
        panels: at least one episode.
        period_s: time between two observations in s.
        subtasks: names of the task's subtasks, for captions that show which are finished.
    """
    import av  # most runs write no video

    stride = max(1, round(SPEED / float(PICTURES_PER_S) / period_s))
    longest = max(len(panel.path) for panel in panels) - 1
    steps = [*range(0, longest, stride), *[longest] * (1 + round(HOLD_S * PICTURES_PER_S))]
    with replacing(file) as scratch, av.open(str(scratch), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", PICTURES_PER_S, options={"crf": "20"})
        for number, step in enumerate(steps, 1):
            frame = compose([panel.picture(step, draw) for panel in panels], panels, step, period_s, subtasks)
            height, width = (size - size % 2 for size in frame.shape[:2])  # the encoding halves the colours' resolution
            if number == 1:
                stream.height, stream.width = height, width
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[:height, :width], format="rgb24")))
            yield number / len(steps)
        container.mux(stream.encode())


def compose(pictures: Sequence[Picture], panels: Sequence[Panel], step: int, period_s: float, subtasks: Sequence[str]) -> Picture:
    """The pictures side by side, each under its caption: RGB [height + caption, sum of widths, 3]."""
    heading = LINE * (2 if subtasks else 1)
    captions = []
    for panel, picture in zip(panels, pictures, strict=True):
        caption = Image.new("RGB", (picture.shape[1], heading), PAPER)
        _write_title(caption, *panel.title(step, period_s, len(subtasks)))
        _write_subtasks(caption, subtasks, panel.finished(step))
        captions.append(np.asarray(caption))
    return np.concatenate([np.concatenate(captions, 1), np.concatenate(pictures, 1)], 0)


def _write_title(caption: Image.Image, left: str, right: str) -> None:
    pen, font = ImageDraw.Draw(caption), ImageFont.load_default(17)
    pen.text((10, LINE / 2), left, INK, font, "lm")
    pen.text((caption.width - 10, LINE / 2), right, INK, font, "rm")


def _write_subtasks(caption: Image.Image, subtasks: Sequence[str], finished: Sequence[str]) -> None:
    """The subtasks in their order, those that are finished in white on blue."""
    pen, font = ImageDraw.Draw(caption), ImageFont.load_default(13)
    left = 8.0
    for name in subtasks:
        width = pen.textlength(name, font) + 16
        done = name in finished
        pen.rounded_rectangle((left, LINE + 2, left + width, 2 * LINE - 6), 8, DONE if done else PALE)
        pen.text((left + width / 2, 1.5 * LINE - 2), name, PAPER if done else GREY, font, "mm")
        left += width + 6
