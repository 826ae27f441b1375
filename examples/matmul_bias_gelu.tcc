# A matrix product with an epilogue: the bias and the GELU can be fused into the product.
cascade matmul_bias_gelu
in  X: f32[M, K], W: f32[K, N], Bias: f32[N]
out Y: f32[M, N]

H[m, n] = X[m, k] * W[k, n]
G[m, n] = H[m, n] + Bias[n]
Y[m, n] = 0.5 * G[m, n] * (1.0 + erf(G[m, n] / sqrt(2.0)))
