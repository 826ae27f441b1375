# Causal attention. A point that `where` excludes does not exist, and neither does anything that
# reads it: one predicate on the scores makes the whole cascade causal, with no -inf anywhere.
# With more keys than queries, the first queries still see only the keys before them.
cascade attention_causal
in  Q: f32[E, P], K: f32[E, M], V: f32[F, M]
out AV: f32[F, P]

QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)  where m <= p
GM[p]    = QK[m, p]                     :: max(m)
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p]    = SN[m, p]
A[m, p]  = SN[m, p] / SD[p]
AV[f, p] = A[m, p] * V[f, m]
