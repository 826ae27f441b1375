# An iterative solver. `T` is iterative, and `stop` ends it early: once the condition holds after a
# step, the state stays as it is. The diagonal is replaced by the sum of the row's magnitudes + 1, so
# that the iteration converges for every `A`.
cascade jacobi
ranks I, J=I, T=100
in  A: f64[I, J], B: f64[I]
out X: f64[I], Steps: i64

D[i]        = abs(A[i, j])                     where j != i
S[0, i]     = 0.0
AS[t, i]    = A[i, j] * S[t, j]                where j != i
S[t + 1, i] = (B[i] - AS[t, i]) / (D[i] + 1.0)
Change[t]   = abs(S[t + 1, i] - S[t, i])       :: max(i)
stop t when Change[t] < 1e-4
X[i]        = S[T, i]
Steps       = i64(Change[t] >= 1e-4)
