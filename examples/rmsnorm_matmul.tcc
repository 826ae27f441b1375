# Root-mean-square normalisation and a matrix product. The scale does not depend on the reduced `d`, so
# it waits until after the product: one pass over the rows of `X`.
cascade rmsnorm_matmul
in  X: f32[M, D], Gain: f32[D], W: f32[D, N]
out Y: f32[M, N]

Square[m] = X[m, d] * X[m, d] / D
XW[m, n]  = X[m, d] * Gain[d] * W[d, n]
Y[m, n]   = XW[m, n] * rsqrt(Square[m] + 1e-6)
