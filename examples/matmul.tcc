# A definition holds for every value of its variables. A variable that is missing on the left is
# reduced, with + unless said otherwise: here `k`. The rank of variable `k` is `K`; its size comes
# from the inputs.
cascade matmul
in  A: f32[M, K], B: f32[K, N]
out C: f32[M, N]

C[m, n] = A[m, k] * B[k, n]
