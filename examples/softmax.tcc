# Softmax along the last rank, in three passes over it: maximum, sum, division.
cascade softmax
in  X: f32[M, N]
out Y: f32[M, N]

Max[m]  = X[m, n]                 :: max(n)
E[m, n] = exp(X[m, n] - Max[m])
Sum[m]  = E[m, n]
Y[m, n] = E[m, n] / Sum[m]
