"""The adjoint contraction, x = C.T y: every row of `y` scatters scaled copies of itself into `x`."""

from loopconv.loops import prange


def adjoint(x, w, y, sizes, stride, dilation):
    """Scatter-add the transposed convolution of `y` with `w` into `x`.

    x (N, G, C, D, H, W)  output; holds zeros at first, and its padding is cropped by the caller
    w (G, K, C, T, R, S)  weights                    y (N, G, K, Z, P, Q)  input

    Windows of neighbouring pixels overlap in `x`, so pixels must not run at the same time. Planes of
    `x` can: each task owns one.
    """
    N, G, K, C, Z, P, Q, T, R, S = sizes
    sd, sh, sw = stride
    dd, dh, dw = dilation
    for task in prange(N * G * C):
        n = task // (G * C)
        g = task // C % G
        c = task % C
        for k in range(K):
            for z in range(Z):
                for p in range(P):
                    for t in range(T):
                        for r in range(R):
                            for s in range(S):
                                for q in range(Q):
                                    x[n, g, c, z * sd + t * dd, p * sh + r * dh, q * sw + s * dw] += (
                                        w[g, k, c, t, r, s] * y[n, g, k, z, p, q]
                                    )
