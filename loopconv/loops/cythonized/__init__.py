"""Extension modules that setup.py compiles from ../forward.py, ../adjoint.py and ../weight.py.

The .pxd file of each declares what Cython needs to know and Python does not: the types.
"""
