# A convolution is an affine index. Reading outside a tensor gives its fill, 0 here, so the borders
# need no care: the output has the size of the input.
cascade conv2d
in  X: f32[N, C, P, Q], W: f32[K, C, R, S]
out Y: f32[N, K, P, Q]

Y[n, k, p, q] = X[n, c, p + r - R // 2, q + s - S // 2] * W[k, c, r, s]
