"""The weight contraction, w = dT/dw: every tap correlates `y` with the input pixels that it met."""

from loopconv.loops import prange


def weight(x, w, y, sizes, stride, dilation):
    """Add the weight gradient of the pair (`x`, `y`) into `w`.

    x (N, G, C, D, H, W)  input, already padded      w (G, K, C, T, R, S)  output; holds zeros at first
    y (N, G, K, Z, P, Q)  gradient with respect to the output of the convolution

    Each task owns the taps between one channel of `y` and one of `x`.
    """
    N, G, K, C, Z, P, Q, T, R, S = sizes
    sd, sh, sw = stride
    dd, dh, dw = dilation
    for task in prange(G * K * C):
        g = task // (K * C)
        k = task // C % K
        c = task % C
        for t in range(T):
            for r in range(R):
                for s in range(S):
                    tap = w[g, k, c, t, r, s]
                    for n in range(N):
                        for z in range(Z):
                            for p in range(P):
                                for q in range(Q):
                                    tap += (
                                        y[n, g, k, z, p, q]
                                        * x[n, g, c, z * sd + t * dd, p * sh + r * dh, q * sw + s * dw]
                                    )
                    w[g, k, c, t, r, s] = tap
