# Attention without taking out the maximum: large scores overflow. Two passes over the keys, since each
# weight is divided by the sum of all.
cascade attention_unstable
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]

QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)
SN[m, p] = exp(QK[m, p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]
