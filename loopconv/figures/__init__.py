"""Diagrams and animations of convolution arithmetic, computed from a `Geometry`.

    from loopconv import figures, geometry

    g = geometry.conv((1, 5, 5), (1, 1, 3, 3), stride=2)
    figures.save(figures.arithmetic(g), "steps.png")
    figures.save(figures.animate(g), "steps.gif")
    figures.save(figures.animate(figures.SETTINGS["strided, transposed"]), "known.gif")

Blue is the input and orange the output; what a colour says, an outline, a hatch or a label says too. Figures are
made without pyplot, at the size of a slide: nothing global changes and no window opens. Channels and images,
which all do the same, are left out but where they matter: in `matrix` and `shifted_kernels`.
"""

try:
    from loopconv.figures.contributions import contribution_map
    from loopconv.figures.entries import matrix
    from loopconv.figures.files import MOVING, STILL, save
    from loopconv.figures.kernels import shifted_kernels
    from loopconv.figures.steps import animate, arithmetic, arithmetic_set
    from loopconv.figures.view import OPS, SETTINGS
except ModuleNotFoundError as error:
    raise ImportError(f"loopconv.figures needs {error.name}: pip install 'loopconv[figures]'") from None

__all__ = [
    "MOVING",
    "OPS",
    "SETTINGS",
    "STILL",
    "animate",
    "arithmetic",
    "arithmetic_set",
    "contribution_map",
    "matrix",
    "save",
    "shifted_kernels",
]
