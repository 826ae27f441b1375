# Two layers with a GELU (tanh form) between them.
cascade mlp_gelu
in  X: f32[M, K], W1: f32[K, H], B1: f32[H], W2: f32[H, N], B2: f32[N]
out Y: f32[M, N]

A[m, h] = X[m, k] * W1[k, h]
C[m, h] = A[m, h] + B1[h]
T[m, h] = tanh(0.7978845608 * (C[m, h] + 0.044715 * C[m, h] ** 3))
G[m, h] = 0.5 * C[m, h] * (1.0 + T[m, h])
D[m, n] = G[m, h] * W2[h, n]
Y[m, n] = D[m, n] + B2[n]
