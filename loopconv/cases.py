"""The one table of geometries: `python -m loopconv check` and the tests run every backend over it."""

from __future__ import annotations

from typing import Any, NamedTuple

from loopconv import geometry


class Case(NamedTuple):
    """One call of `conv` or `conv_transpose`, without the numbers."""

    name: str
    op: str
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    settings: dict[str, Any]

    @property
    def geometry(self) -> geometry.Geometry:
        """The trilinear form behind it."""
        build = {"conv": geometry.conv, "conv_transpose": geometry.conv_transpose}[self.op]
        return build(self.x_shape, self.w_shape, **self.settings)


def _conv(name, x_shape, w_shape, **settings):
    return Case(name, "conv", x_shape, w_shape, settings)


def _transpose(name, x_shape, w_shape, **settings):
    return Case(name, "conv_transpose", x_shape, w_shape, settings)


CASES = (
    # ranks, sizes that are 1, primes
    _conv("1d", (2, 3, 11), (4, 3, 3)),
    _conv("2d", (2, 3, 7, 6), (4, 3, 3, 2)),
    _conv("3d", (2, 2, 5, 4, 6), (3, 2, 2, 3, 2)),
    _conv("unbatched", (3, 7, 5), (2, 3, 3, 3), padding=1),
    _conv("one-pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    _conv("pointwise", (2, 5, 4, 3), (7, 5, 1, 1)),
    _conv("pointwise-stride", (1, 3, 7, 8), (2, 3, 1, 1), stride=2),
    _conv("kernel-is-input", (2, 3, 4, 5), (2, 3, 4, 5)),
    _conv("primes", (1, 7, 13, 11), (5, 7, 3, 5), stride=(2, 3), padding=(1, 2)),
    _conv("long-row", (1, 2, 2, 131), (3, 2, 1, 7), padding=(0, 3)),
    # widths around what vector code handles at a time
    *(_conv(f"width-{n}", (1, 2, 3, n), (2, 2, 3, 3), padding=1) for n in (15, 16, 17, 31, 32, 33)),
    # stride, dilation, padding
    _conv("stride-2", (2, 3, 9, 10), (4, 3, 3, 3), stride=2, padding=1),
    _conv("stride-over-kernel", (1, 2, 11, 13), (3, 2, 2, 2), stride=(4, 5)),
    _conv("dilation", (2, 2, 9, 11), (3, 2, 3, 2), dilation=(2, 3)),
    _conv("dilation-stride", (1, 2, 13, 12), (3, 2, 3, 3), dilation=(3, 2), stride=(2, 3), padding=2),
    _conv("asymmetric", (1, 2, 6, 5), (3, 2, 3, 3), padding=((0, 2), (3, 1))),
    _conv("crop", (1, 2, 9, 8), (3, 2, 3, 3), padding=((-1, -2), (-2, 1))),
    _conv("shift", (1, 2, 6, 5), (3, 2, 3, 3), padding=((1, -1), (-2, 2))),
    _conv("padding-over-input", (1, 2, 2, 1), (2, 2, 3, 2), padding=4),
    _conv("only-padding-in-window", (1, 1, 2, 2), (1, 1, 2, 2), padding=5, stride=3),
    _conv("full", (1, 2, 4, 5), (3, 2, 3, 2), padding="full"),
    _conv("same", (2, 3, 6, 7), (2, 3, 4, 3), padding="same"),
    _conv("same-stride", (1, 2, 9, 10), (3, 2, 5, 3), padding="same", stride=(2, 3)),
    _conv("same-stride-dilation", (1, 2, 12), (3, 2, 3), padding="same", stride=5, dilation=2),
    _conv(
        "3d-all", (1, 4, 7, 6, 5), (6, 2, 3, 2, 2), stride=(2, 1, 2), padding=(1, 0, 2), dilation=(1, 2, 1), groups=2
    ),
    # groups
    _conv("groups", (2, 6, 7, 5), (4, 3, 3, 3), groups=2, padding=1),
    _conv("depthwise", (2, 5, 8, 7), (5, 1, 3, 3), groups=5, padding=1),
    _conv("depthwise-multiplier", (1, 3, 8, 7), (9, 1, 3, 3), groups=3, stride=2),
    # nothing to do
    _conv("no-images", (0, 3, 5, 5), (2, 3, 3, 3)),
    _conv("no-input-channels", (2, 0, 5, 5), (3, 0, 3, 3)),
    _conv("no-output-channels", (2, 3, 5, 5), (0, 3, 3, 3)),
    _conv("no-pixels", (1, 2, 0, 4), (3, 2, 2, 2), padding=1),
    # the transpose and its output sizes
    _transpose("t-1d", (2, 3, 5), (3, 4, 3), stride=2),
    _transpose("t-2d", (2, 3, 4, 5), (3, 2, 3, 3), stride=2, padding=1, output_padding=1),
    _transpose("t-3d", (1, 2, 3, 2, 3), (2, 3, 2, 3, 2), stride=(2, 1, 3), padding=(0, 1, 0)),
    _transpose("t-unbatched", (3, 4, 4), (3, 2, 4, 4), stride=2, padding=1),
    _transpose("t-stride-over-kernel", (1, 2, 3, 4), (2, 2, 1, 2), stride=3, output_padding=2),
    _transpose("t-output-padding-over-stride", (1, 2, 4, 3), (2, 3, 2, 3), dilation=3, output_padding=(2, 1)),
    _transpose("t-output-size", (1, 2, 4, 4), (2, 3, 3, 3), stride=3, padding=1, output_size=(12, 11)),
    _transpose("t-asymmetric", (1, 2, 4, 3), (2, 3, 3, 4), stride=2, padding=((2, 0), (1, 3))),
    _transpose("t-negative-padding", (1, 2, 3, 3), (2, 2, 2, 2), padding=(-2, -1)),
    _transpose("t-crop-all-but-one", (1, 2, 2, 2), (2, 2, 3, 3), padding=((1, 2), (2, 1))),
    _transpose("t-same", (1, 3, 4, 5), (3, 2, 5, 2), stride=2, padding="same"),
    _transpose("t-same-size", (1, 3, 4, 5), (3, 2, 3, 4), stride=3, padding="same", output_size=(11, 13)),
    _transpose("t-groups", (2, 4, 3, 4), (4, 3, 3, 3), groups=2, stride=2, padding=1),
    _transpose("t-depthwise", (1, 3, 4, 4), (3, 1, 4, 4), groups=3, stride=2, padding=1),
    _transpose("t-document-002", (1, 4, 17, 17), (4, 1, 9, 9)),
    _transpose("t-fsrcnn", (1, 5, 6, 7), (5, 1, 9, 9), stride=3, padding=4, output_padding=2),
    _transpose("t-no-images", (0, 3, 4, 4), (3, 2, 3, 3), stride=2),
)
