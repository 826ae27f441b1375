# Attention as the literature writes it, in three passes over the keys `m`:
# the maximum, the denominator, and the weighted sum of the values.
cascade attention
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]

QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)
GM[p]    = QK[m, p]                    :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]
