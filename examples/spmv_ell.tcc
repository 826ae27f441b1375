# A sparse matrix times a vector, by gathering: row `i` has the values `A[i, k]` in the columns
# `Col[i, k]`; padding has the column -1, which reads 0.
cascade spmv_ell
ranks J
in  A: f32[I, K], Col: i32[I, K], X: f32[J]
out Y: f32[I]

Y[i] = A[i, k] * X[Col[i, k]]
