# The same with the division behind the sum over the keys: one pass.
cascade attention_unstable_deferred
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]

QK[m, p]  = Q[e, p] * K[e, m] / sqrt(E)
SN[m, p]  = exp(QK[m, p])
SD[p]     = SN[m, p]
SNV[f, p] = SN[m, p] * V[f, m]
AV[f, p]  = SNV[f, p] / SD[p]
