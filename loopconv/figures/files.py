"""Figures and animations as files."""

from __future__ import annotations

import os
from collections import Counter
from io import BytesIO
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.animation import AbstractMovieWriter, Animation, FFMpegWriter
from matplotlib.figure import Figure
from PIL import Image

from loopconv import geometry
from loopconv.figures.canvas import DPI

STILL = (".png", ".svg", ".pdf", ".jpg", ".webp")  # what `save` writes of a figure
MOVING = (".gif", ".mp4", ".png", ".svg")  # and of an animation; of the last two, a file for every frame
STILL_DPI = 150  # 1920 x 1080 pixels
GIF_COLORS = 128
PAUSE = 1500  # milliseconds for which the end of a GIF stays, to be looked at, before it begins again


def save(picture: Figure | Animation, path: str | os.PathLike[str]) -> list[Path]:
    """Write a figure or an animation to a file, of the kind that its name ends in.

    Parameters
    ----------
    picture : matplotlib.figure.Figure or matplotlib.animation.Animation
        What the functions of this module return.
    path : str or path
        For a figure, .png, .svg, .pdf, .jpg or .webp. For an animation, .gif, .mp4, or, with a file for every
        frame, .png or .svg: ``steps.png`` gives ``steps-001.png`` and so on. Figures have 1920 x 1080 pixels,
        animations 1280 x 720. Files that exist are replaced, once all of the new ones are complete.

    Returns
    -------
    list of pathlib.Path
        The files that were written.

    Raises
    ------
    TypeError
        If `picture` is neither, or `path` is none.
    ValueError
        If `path` has another ending, or is not in a directory that can be written to; also if it ends in .mp4
        and there is no program ffmpeg on the PATH.

    Examples
    --------
    >>> from loopconv import figures
    >>> figures.save(figures.animate(figures.SETTINGS["strided"]), "strided.pdf")
    Traceback (most recent call last):
        ...
    ValueError: path must end in one of .gif .mp4 .png .svg for an animation, got 'strided.pdf'
    """
    if not isinstance(picture, (Figure, Animation)):
        raise TypeError(f"picture must be a figure or an animation, got {geometry.shown(picture)}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {geometry.shown(path)}")
    path = Path(path)
    if problem := path_problem(path, moving=isinstance(picture, Animation)):
        raise ValueError(problem)
    with TemporaryDirectory(dir=path.parent, prefix=".figures-") as folder:
        unfinished = Path(folder) / path.name
        if isinstance(picture, Animation):
            _save_animation(picture, unfinished)
        else:
            picture.savefig(unfinished, dpi=STILL_DPI, facecolor="white", bbox_inches=picture.bbox_inches)
        return [file.replace(path.parent / file.name) for file in sorted(Path(folder).iterdir())]


def path_problem(path: Path, moving: bool) -> str | None:
    """Why no animation, or no figure, can be written to `path`; None if one can."""
    suffix = path.suffix.lower()
    if suffix not in (MOVING if moving else STILL):
        still, moves = f"{' '.join(STILL)} for a figure", f"{' '.join(MOVING)} for an animation"
        valid = f"{still}, or of {moves}" if suffix not in STILL + MOVING else moves if moving else still
        return f"path must end in one of {valid}, got '{path}'"
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        return f"path must be a file in a directory that exists and is writable, got '{path}'"
    if suffix == ".mp4" and not FFMpegWriter.isAvailable():
        return f"path must not end in .mp4 where there is no program ffmpeg on the PATH (.gif needs none), got '{path}'"
    return None


def _save_animation(animation, path) -> None:
    kind = {".gif": _Gif, ".mp4": FFMpegWriter}.get(path.suffix.lower(), _Frames)
    writer = kind(fps=1000 / animation.event_source.interval, codec="h264")
    animation.save(path, writer=writer, dpi=DPI, savefig_kwargs={"facecolor": "white"})


class _Gif(AbstractMovieWriter):
    """One palette for all frames and no dither: small files, as sharp as what was drawn.

    The palette has the commonest colours, exactly; one of averages would make white grey. Frames wait as PNG.
    """

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)
        self.frames, self.colors = [], Counter()

    def grab_frame(self, **savefig_kwargs):
        frame = BytesIO()
        self.fig.savefig(frame, format="png", dpi=self.dpi, **savefig_kwargs)
        self.frames.append(frame)
        with Image.open(frame) as image:
            rgb = image.convert("RGB")
        self.colors.update({color: count for count, color in rgb.getcolors(rgb.width * rgb.height)})

    def finish(self):
        palette = Image.new("P", (1, 1))
        exact: dict[tuple[int, ...], tuple[int, ...]] = {}
        for color, _ in self.colors.most_common():  # Pillow tells colours apart by the upper six bits
            exact.setdefault(tuple(part >> 2 for part in color), color)
        palette.putpalette(bytes(chain.from_iterable(list(exact.values())[:GIF_COLORS])))
        images = (self._flat(frame, palette) for frame in self.frames)
        step = round(1000 / self.fps)
        duration = [*[step] * (len(self.frames) - 1), step + PAUSE]
        next(images).save(self.outfile, save_all=True, append_images=images, duration=duration, loop=0, optimize=True)

    def _flat(self, frame, palette):
        with Image.open(frame) as image:
            return image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)


class _Frames(AbstractMovieWriter):
    """A file for every frame, its number before the extension."""

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)
        self.count = 0

    def grab_frame(self, **savefig_kwargs):
        self.count += 1
        path = Path(self.outfile)
        self.fig.savefig(path.with_stem(f"{path.stem}-{self.count:03d}"), dpi=self.dpi, **savefig_kwargs)

    def finish(self):
        """Nothing is left to do."""
