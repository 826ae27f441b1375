# Attention with the division deferred behind the sum over the keys: two passes over `m`.
cascade attention_two_pass
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]

QK[m, p]  = Q[e, p] * K[e, m] / sqrt(E)
GM[p]     = QK[m, p]                    :: max(m)
SN[m, p]  = exp(QK[m, p] - GM[p])
SD[p]     = SN[m, p]
SNV[f, p] = SN[m, p] * V[f, m]
AV[f, p]  = SNV[f, p] / SD[p]
