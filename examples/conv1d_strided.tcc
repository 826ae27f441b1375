# A convolution with stride 2. The input's size is an expression over other ranks: from the sizes of
# `X` and `W` the compiler finds P.
cascade conv1d_strided
ranks P
in  X: f32[C, 2*P + R - 2], W: f32[K, C, R]
out Y: f32[K, P]

Y[k, p] = X[c, 2*p + r] * W[k, c, r]
