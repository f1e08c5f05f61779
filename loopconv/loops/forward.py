"""The forward contraction, y = C x: every output row gathers the input rows that its windows meet."""

from loopconv.loops import prange


def forward(x, w, y, sizes, stride, dilation):
    """Add the convolution of `x` with `w` into `y`.

    x (N, G, C, D, H, W)  input, already padded      w (G, K, C, T, R, S)  weights
    y (N, G, K, Z, P, Q)  output; the caller has put the bias there, or zeros

    Each task owns one plane of `y`, so tasks can run at the same time, and the terms of one output
    are added in the same order whoever runs them.
    """
    N, G, K, C, Z, P, Q, T, R, S = sizes
    sd, sh, sw = stride
    dd, dh, dw = dilation
    for task in prange(N * G * K):
        n = task // (G * K)
        g = task // K % G
        k = task % K
        for z in range(Z):
            for p in range(P):
                for c in range(C):
                    for t in range(T):
                        for r in range(R):
                            for s in range(S):
                                for q in range(Q):
                                    y[n, g, k, z, p, q] += (
                                        w[g, k, c, t, r, s]
                                        * x[n, g, c, z * sd + t * dd, p * sh + r * dh, q * sw + s * dw]
                                    )
