# Root-mean-square normalisation: two passes over a row.
cascade rmsnorm
in  X: f32[M, N], Gain: f32[N]
out Y: f32[M, N]

Square[m] = X[m, n] * X[m, n] / N
Y[m, n]   = X[m, n] * rsqrt(Square[m] + 1e-6) * Gain[n]
