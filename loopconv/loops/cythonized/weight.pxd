# Types for Cython's build of ../weight.py.
cimport cython

from loopconv.loops.cythonized.types cimport element, tens, triple


@cython.locals(
    tap=element,
    N=Py_ssize_t, G=Py_ssize_t, K=Py_ssize_t, C=Py_ssize_t, Z=Py_ssize_t, P=Py_ssize_t, Q=Py_ssize_t,
    T=Py_ssize_t, R=Py_ssize_t, S=Py_ssize_t, sd=Py_ssize_t, sh=Py_ssize_t, sw=Py_ssize_t,
    dd=Py_ssize_t, dh=Py_ssize_t, dw=Py_ssize_t, task=Py_ssize_t, n=Py_ssize_t, g=Py_ssize_t, k=Py_ssize_t,
    c=Py_ssize_t, z=Py_ssize_t, p=Py_ssize_t, q=Py_ssize_t, t=Py_ssize_t, r=Py_ssize_t, s=Py_ssize_t,
)
cpdef weight(
    const element[:, :, :, :, :, ::1] x, element[:, :, :, :, :, ::1] w, const element[:, :, :, :, :, ::1] y,
    tens sizes, triple stride, triple dilation,
)
