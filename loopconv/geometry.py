"""Every size formula, padding rule and check on sizes; the library has them nowhere else.

A :class:`Geometry` describes one trilinear form

    T(x, w, y) = sum over n, k, c, p, r of  y[n, k, p] * w[k, c, r] * x[n, c, p*stride + r*dilation - pad]

and with it all three contractions. `x` is always the large side: the input of a convolution, the
output of a transposed convolution.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from math import prod

PADDING_WORDS = ("valid", "same", "full")


@dataclass(frozen=True)
class Geometry:
    """Sizes of the three arrays of one trilinear form.

    Attributes
    ----------
    batch : int
        N.
    groups : int
        Number of groups G; it divides `c` and `k`.
    c, k : int
        Channels of `x` and of `y`, over all groups.
    input, kernel, output : tuple of int
        Spatial sizes of `x` (pixels), `w` (taps) and `y` (pixels).
    stride, dilation : tuple of int
        Pixels of `x` between neighbouring windows, and between neighbouring taps.
    pad : tuple of int
        Pixels put before `x` on each axis; negative ones crop. What has to follow `x` is decided
        by `output` alone, see :attr:`span`.
    """

    batch: int
    groups: int
    c: int
    k: int
    input: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self):
        """Worked out once: plans are looked up by it, several times in a call."""
        return hash((self.batch, self.groups, self.c, self.k, self.input, self.kernel, self.output, self.stride,
                     self.dilation, self.pad))  # fmt: skip

    @cached_property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @cached_property
    def x_shape(self) -> tuple[int, ...]:
        """(N, C, *input)."""
        return (self.batch, self.c, *self.input)

    @cached_property
    def w_shape(self) -> tuple[int, ...]:
        """(K, C / groups, *kernel)."""
        return (self.k, self.c // self.groups, *self.kernel)

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        """(N, K, *output)."""
        return (self.batch, self.k, *self.output)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The three shapes by the names of the arrays."""
        return {"x": self.x_shape, "w": self.w_shape, "y": self.y_shape}

    @cached_property
    def span(self) -> tuple[int, ...]:
        """Pixels from the first to past the last that any window covers: ``(o-1)*stride + extent``."""
        return tuple(
            max((o - 1) * s + e, 0) for o, s, e in zip(self.output, self.stride, extents(self.kernel, self.dilation))
        )

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of each contraction, counting those that meet padding."""
        return prod(self.y_shape) * (self.c // self.groups) * prod(self.kernel)

    @cached_property
    def terms(self) -> dict[str, int]:
        """How many products are added up in one element of each contraction's result."""
        taps = prod(self.kernel)
        return {
            "forward": self.c // self.groups * taps,
            "adjoint": self.k // self.groups * taps,
            "weight": self.batch * prod(self.output),
        }


def extents(kernel, dilation):
    """Pixels that a dilated kernel covers on each axis: ``d*(k-1) + 1``."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))


# --------------------------------------------------------------------------------------- integers


def integer(name, value):
    """`value` as an int of 64 bits; floats, NaN, bools and strings are refused."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, bool) or getattr(value, "dtype", None) == "bool":
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit in 64 bits, got {value}")
    return value


def shown(value):
    """`repr` of what was given, for one line of an error."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-16:]}"


def _is_sequence(value):
    return hasattr(value, "__iter__") and getattr(value, "ndim", 1) != 0


def _entries(name, value, rank, form):
    """The `rank` entries of a sequence; `form` says what would be valid."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be {form}, got {shown(value)}")
    entries = tuple(value)
    if len(entries) != rank:
        raise ValueError(f"{name} must be {form}: {rank} for this {rank}-D call, got {len(entries)} in {shown(value)}")
    return entries


def per_axis(name, value, rank, least):
    """One int for every axis, from an int or a sequence of `rank` ints, each at least `least`."""
    if type(value) is not int and _is_sequence(value):
        axes = tuple(integer(name, entry) for entry in _entries(name, value, rank, "an int or one int per axis"))
    else:
        axes = (integer(name, value),) * rank
    if any(entry < least for entry in axes):
        raise ValueError(f"{name} must be at least {least} on every axis, got {shown(value)}")
    return axes


def padding_pairs(padding, rank):
    """`padding` as a word of PADDING_WORDS or as one (lo, hi) pair of ints for every axis."""
    if type(padding) is int:
        return ((integer("padding", padding),) * 2,) * rank
    if isinstance(padding, str):
        if padding not in PADDING_WORDS:
            raise ValueError(f"padding must be ints or one of {', '.join(PADDING_WORDS)}, got {padding!r}")
        return padding
    form = "an int, one int or (lo, hi) pair per axis, or one of " + ", ".join(PADDING_WORDS)
    if not _is_sequence(padding):
        return padding_pairs(integer("padding", padding), rank)
    pairs = []
    for entry in _entries("padding", padding, rank, form):
        pair = tuple(entry) if _is_sequence(entry) and not isinstance(entry, str) else (entry, entry)
        if len(pair) != 2:
            raise ValueError(f"padding must have (lo, hi) pairs, got {shown(entry)} in {shown(padding)}")
        pairs.append((integer("padding", pair[0]), integer("padding", pair[1])))
    return tuple(pairs)


def shape_tuple(name, shape):
    """`shape` as a tuple of non-negative ints."""
    if type(shape) is tuple:
        for size in shape:
            if type(size) is not int or not 0 <= size < 2**63:
                break
        else:
            return shape
    if isinstance(shape, (str, bytes)) or not _is_sequence(shape):
        raise TypeError(f"{name} must be a tuple of ints, got {shown(shape)}")
    try:
        sizes = tuple(integer(name, size) for size in shape)
    except TypeError:
        raise TypeError(f"{name} must be a tuple of ints, got {shown(shape)}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name} must have no negative sizes, got {shape!r}")
    return sizes


# ------------------------------------------------------------------------------------ size formulas


# The same object for the same sizes, whatever call they come from: plans are looked up by it, several times in a call,
# and comparing two takes 0.5 us.
_one = lru_cache(maxsize=1024)(Geometry)


def _word_pads(word, sizes, extent, stride):
    """(lo, hi) pairs of a padding word for an `x` of spatial `sizes`.

    'same' gives ``ceil(n / stride)`` output pixels; of an odd total the extra pixel goes to the end.
    """
    if word == "valid":
        return tuple((0, 0) for _ in extent)
    if word == "full":
        return tuple((e - 1, e - 1) for e in extent)
    totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(sizes, stride, extent)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _rank(w_name, w_shape):
    """Number of spatial axes."""
    if len(w_shape) < 3:
        raise ValueError(
            f"{w_name} must have 3 or more dimensions (two of channels, then the kernel), got shape {w_shape}"
        )
    return len(w_shape) - 2


def _check_weight(x_name, x_shape, w_name, w_shape, groups):
    """Checks shared by both directions; returns (rank, batch, channels of the array x_name)."""
    rank = len(w_shape) - 2
    if min(w_shape[2:]) < 1:
        raise ValueError(f"{w_name} must have a kernel of at least 1 tap on every axis, got shape {w_shape}")
    if len(x_shape) not in (rank + 1, rank + 2):
        raise ValueError(
            f"{x_name} must have {rank + 2} dimensions (N, channels, {rank} spatial) or {rank + 1} (unbatched) "
            f"to go with {w_name} of shape {w_shape}, got shape {x_shape}"
        )
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if w_shape[0] % groups:
        raise ValueError(f"groups must divide the first axis of {w_name}, got groups={groups} for shape {w_shape}")
    return rank, (x_shape[0] if len(x_shape) == rank + 2 else 1), x_shape[-rank - 1]


def _kept(make):
    """`make`, whose results are kept by its arguments as they were given, where these can be told apart."""
    kept = lru_cache(maxsize=1024)(make)

    @wraps(make)
    def geometry(one_shape, other_shape, *settings, **named):
        if are_told_apart(settings) and (not named or are_told_apart(named.values())):
            return kept(one_shape, other_shape, *settings, **named)
        return make(one_shape, other_shape, *settings, **named)

    return geometry


def are_told_apart(settings):
    """Whether settings that are equal are the same: 1.0 and True are 1."""
    for setting in settings:
        kind = type(setting)
        if not (kind is int or kind is str or setting is None or (kind is tuple and are_told_apart(setting))):
            return False
    return True


@_kept
def conv(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1, *, x_name="x", w_name="w") -> Geometry:
    """Geometry of a convolution of `x_shape` with `w_shape`, or the error that says why there is none.

    ``o = (n + lo + hi - e) // s + 1`` with ``e = d*(k-1) + 1``.
    """
    rank = _rank(w_name, w_shape)
    return _conv(
        x_shape,
        w_shape,
        per_axis("stride", stride, rank, 1),
        padding_pairs(padding, rank),
        per_axis("dilation", dilation, rank, 1),
        integer("groups", groups),
        x_name,
        w_name,
    )


@lru_cache(maxsize=1024)
def _conv(x_shape, w_shape, stride, padding, dilation, groups, x_name, w_name):
    rank, batch, channels = _check_weight(x_name, x_shape, w_name, w_shape, groups)
    if channels != w_shape[1] * groups:
        raise ValueError(
            f"{x_name} must have {w_shape[1] * groups} channels (axis 1 of {w_name} {w_shape} times "
            f"groups={groups}), got {channels} in shape {x_shape}"
        )
    sizes, kernel = x_shape[-rank:], w_shape[2:]
    extent = extents(kernel, dilation)
    pads = _word_pads(padding, sizes, extent, stride) if isinstance(padding, str) else padding
    output = []
    for axis, (n, (lo, hi), e, s) in enumerate(zip(sizes, pads, extent, stride)):
        if n + lo + hi < e:
            raise ValueError(
                f"{w_name} must fit in the padded input: on spatial axis {axis} its {kernel[axis]} taps at "
                f"dilation {dilation[axis]} cover {e} pixels, got {n} + padding {lo} + {hi} = {n + lo + hi} "
                f"from {x_name} of shape {x_shape}"
            )
        output.append((n + lo + hi - e) // s + 1)
    return _one(
        batch, groups, channels, w_shape[0], sizes, kernel, tuple(output), stride, dilation,
        tuple(lo for lo, _ in pads),
    )  # fmt: skip


@_kept
def conv_transpose(
    x_shape, w_shape, stride=1, padding=0, output_padding=0, output_size=None, dilation=1, groups=1, *,
    x_name="x", w_name="w", size_name="output_size",
) -> Geometry:  # fmt: skip
    """Geometry whose adjoint is the transposed convolution of `x_shape` with `w_shape`.

    ``N = (n-1)*s + e - lo - hi + output_padding``; `output_size` names N instead. With
    ``padding='same'`` the result is the adjoint of the 'same' convolution of N pixels,
    ``N = n*s`` unless `output_size` says another.
    """
    rank = _rank(w_name, w_shape)
    if output_size is not None:
        output_size = per_axis(size_name, output_size, rank, 0)
    return _conv_transpose(
        x_shape,
        w_shape,
        per_axis("stride", stride, rank, 1),
        padding_pairs(padding, rank),
        per_axis("output_padding", output_padding, rank, 0),
        output_size,
        per_axis("dilation", dilation, rank, 1),
        integer("groups", groups),
        x_name,
        w_name,
        size_name,
    )


@lru_cache(maxsize=1024)
def _conv_transpose(
    x_shape, w_shape, stride, padding, output_padding, output_size, dilation, groups, x_name, w_name, size_name
):
    rank, batch, channels = _check_weight(x_name, x_shape, w_name, w_shape, groups)
    if channels != w_shape[0]:
        raise ValueError(
            f"{x_name} must have {w_shape[0]} channels (axis 0 of {w_name} {w_shape}), "
            f"got {channels} in shape {x_shape}"
        )
    if output_size is not None and any(output_padding):
        raise ValueError(
            f"output_padding must be left out when output_size is given, got output_padding={output_padding} "
            f"and output_size={output_size}"
        )
    sizes, kernel = x_shape[-rank:], w_shape[2:]
    extent = extents(kernel, dilation)
    if padding == "same":
        _check_output_padding_unset(output_padding)
        wanted = output_size or tuple(n * s for n, s in zip(sizes, stride))
        _check_same_size(wanted, sizes, stride, size_name)
        pads = _word_pads("same", wanted, extent, stride)
    else:
        pads = _word_pads(padding, sizes, extent, stride) if isinstance(padding, str) else padding
        wanted = _transposed_sizes(sizes, extent, stride, dilation, pads, output_padding, output_size, size_name)
    return _one(
        batch, groups, w_shape[1] * groups, channels, wanted, kernel, sizes, stride, dilation,
        tuple(lo for lo, _ in pads),
    )  # fmt: skip


def _check_output_padding_unset(output_padding):
    if any(output_padding):
        raise ValueError(
            f"output_padding must be left out with padding='same', which fixes the output size, got {output_padding}"
        )


def _check_same_size(wanted, sizes, stride, size_name):
    for axis, (N, n, s) in enumerate(zip(wanted, sizes, stride)):
        if -(-N // s) != n:
            raise ValueError(
                f"{size_name} must be {_choices((n - 1) * s + 1, n * s)} on spatial axis {axis} for padding='same', "
                f"{n} input pixels and stride {s}, got {N}"
            )


def _choices(least, most):
    """The sizes from `least` to `most` in words; negative ones are no sizes."""
    sizes = range(max(least, 0), most + 1)
    if len(sizes) > 8:
        return f"{sizes[0]} to {sizes[-1]}"
    return f"one of {list(sizes)}"


def _transposed_sizes(sizes, extent, stride, dilation, pads, output_padding, output_size, size_name):
    """Output sizes of a transposed convolution, from whichever of the two arguments names them."""
    wanted = []
    for axis, (n, e, s, d, (lo, hi)) in enumerate(zip(sizes, extent, stride, dilation, pads)):
        base = (n - 1) * s + e - lo - hi
        limit = max(s, d)
        if output_size is None:
            N = base + output_padding[axis]
            if output_padding[axis] >= limit:
                raise ValueError(
                    f"output_padding must be less than max(stride, dilation) = {limit} on spatial axis {axis}, "
                    f"got {output_padding[axis]}"
                )
            _check_output_left(axis, N, base, n, lo, hi)
        else:
            N = output_size[axis]
            _check_output_left(axis, base + limit - 1, base, n, lo, hi)
            if not base <= N < base + limit:
                raise ValueError(
                    f"{size_name} must be {_choices(base, base + limit - 1)} on spatial axis {axis} "
                    f"(output_padding 0 to {limit - 1} for {n} input pixels), got {N}"
                )
        wanted.append(N)
    return tuple(wanted)


def _check_output_left(axis, most, base, n, lo, hi):
    if most < 0:
        raise ValueError(
            f"padding must leave an output: on spatial axis {axis} padding {lo} + {hi} crops more than the "
            f"{base + lo + hi} pixels that {n} input pixels scatter to, got output size {most}"
        )


@_kept
def conv_transpose_of_grad(
    grad_shape, x_shape, w_shape, *, output_padding=None, output_size=None, **settings
) -> Geometry:
    """Geometry of the transposed convolution whose output has the shape of its gradient.

    That shape names the output size; `output_padding` and `output_size` may repeat it, so that the
    keywords of the forward call can be passed on as they are.
    """
    if output_padding is None and output_size is None:
        x_name, w_name = settings.get("x_name", "x"), settings.get("w_name", "w")
        rank = _rank(w_name, w_shape)
        _check_weight(x_name, x_shape, w_name, w_shape, integer("groups", settings["groups"]))
        if len(grad_shape) <= rank:
            raise ValueError(f"grad must have {len(x_shape)} dimensions, as the output has, got shape {grad_shape}")
        output_size, settings["size_name"] = grad_shape[-rank:], f"grad of shape {grad_shape}"
    return conv_transpose(
        x_shape,
        w_shape,
        output_padding=0 if output_padding is None else output_padding,
        output_size=output_size,
        **settings,
    )


# -------------------------------------------------------------------------- the formulas, read backwards


def axes_of(*values):
    """Number of spatial axes: the length of the longest sequence among `values`, 1 if there is none."""
    return max([len(v) for v in values if _is_sequence(v) and not isinstance(v, (str, bytes))], default=1) or 1


def preimage(output, kernel, *, stride=1, padding=0, dilation=1):
    """For every axis the range of sizes of `x` whose convolution gives `output`.

    ``(o-1)*s + e - lo - hi`` and the s - 1 sizes after it: what is left over by the floor of `conv`.
    """
    rank = axes_of(output, kernel, stride, padding, dilation)
    output, kernel = per_axis("output", output, rank, 1), per_axis("kernel", kernel, rank, 1)
    stride, dilation = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    pads, extent = padding_pairs(padding, rank), extents(kernel, dilation)
    if pads == "same":
        return tuple(range((o - 1) * s + 1, o * s + 1) for o, s in zip(output, stride))
    if isinstance(pads, str):  # the words that are left do not look at the sizes
        pads = _word_pads(pads, output, extent, stride)
    least = ((o - 1) * s + e - lo - hi for o, s, e, (lo, hi) in zip(output, stride, extent, pads))
    return tuple(range(max(n, 0), max(n + s, 0)) for n, s in zip(least, stride))


def pads_between(input, output, kernel, *, stride=1, dilation=1, transposed=False):
    """((lo, hi) pairs, output_padding) that make `output` of `input`, or the error that says why none do.

    Both directions solve ``N + lo + hi = (n-1)*s + e + output_padding`` with N pixels on the large side.
    """
    if not isinstance(transposed, bool):
        raise TypeError(f"transposed must be True or False, got {shown(transposed)}")
    rank = axes_of(input, output, kernel, stride, dilation)
    input = per_axis("input", input, rank, int(transposed))
    output = per_axis("output", output, rank, int(not transposed))
    large, small = (output, input) if transposed else (input, output)
    kernel = per_axis("kernel", kernel, rank, 1)
    stride, dilation = per_axis("stride", stride, rank, 1), per_axis("dilation", dilation, rank, 1)
    solutions = []
    for axis, (N, n, s, d, e) in enumerate(zip(large, small, stride, dilation, extents(kernel, dilation))):
        span, limit = (n - 1) * s + e, max(s, d) if transposed else s
        rest = max(N - span, 0)
        if rest >= limit:
            _refuse_without_pads(axis, N, n, s, e, span, limit, transposed)
        if (span + rest - N) % 2 and rest + 1 < s:
            rest += 1  # so that pads are the same on both sides, which every library can say
        total = span + rest - N
        solutions.append(((total // 2, total - total // 2), rest))
    pads, output_padding = zip(*solutions)
    return pads, output_padding


def _refuse_without_pads(axis, N, n, s, e, span, limit, transposed):
    if transposed:
        raise ValueError(
            f"output must be at most {span + limit - 1} on spatial axis {axis}: {n} input pixels scatter to {span} "
            f"before any is cropped, and output_padding adds less than max(stride, dilation) = {limit}, got {N}"
        )
    raise ValueError(
        f"output must be at least {(N - e) // s + 1} on spatial axis {axis}: {N} input pixels have that many windows "
        f"of {e} pixels at stride {s} before any padding, got {n}"
    )
