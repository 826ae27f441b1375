# Layer normalisation. The size of a rank is a number in expressions: `N` is the length of a row.
cascade layernorm
in  X: f32[M, N], Gain: f32[N], Bias: f32[N]
out Y: f32[M, N]

Mean[m]     = X[m, n] / N
Centred[m, n] = X[m, n] - Mean[m]
Var[m]      = Centred[m, n] * Centred[m, n] / N
Scale[m]    = rsqrt(Var[m] + 1e-5)
Y[m, n]     = Centred[m, n] * Scale[m] * Gain[n] + Bias[n]
