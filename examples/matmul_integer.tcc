# Integers are exact. The inputs have 8 bits; the casts make the products and their sum 32 bits wide.
cascade matmul_integer
in  A: i8[M, K], B: i8[K, N]
out C: i32[M, N]

C[m, n] = i32(A[m, k]) * i32(B[k, n])
