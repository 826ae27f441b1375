in X: f32[M, N]
out Y: f32[M, N]
Max[m] = X[m, n] :: max(n)
Scale[m] = 1.0 / Max[m]
Y[m, n] = X[m, n] * Scale[m]
