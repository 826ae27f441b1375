# Layer normalisation from the sum and the sum of squares: two passes over a row instead of three, and
# less exact where the mean is large against the variance.
cascade layernorm_two_pass
in  X: f32[M, D], Gain: f32[D], Bias: f32[D]
out Y: f32[M, D]

Sum[m]    = X[m, d]
Square[m] = X[m, d] * X[m, d]
Mean[m]   = Sum[m] / D
Var[m]    = max(Square[m] / D - Mean[m] * Mean[m], 0.0)
Y[m, d]   = (X[m, d] - Mean[m]) * rsqrt(Var[m] + 1e-5) * Gain[d] + Bias[d]
