# log(sum(exp(x))) without overflow: the maximum is taken out first.
cascade log_sum_exp
in  X: f32[M, N]
out L: f32[M]

Max[m] = X[m, n]                  :: max(n)
Sum[m] = exp(X[m, n] - Max[m])
L[m]   = Max[m] + log(Sum[m])
