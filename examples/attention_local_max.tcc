# Attention by tiles of keys, each with its own maximum: the keys are in M1 tiles of M0. `PLM` corrects
# a tile's sums once the global maximum is known; it walks one value per tile, so this is no pass over
# the keys. The division inside makes a second pass.
cascade attention_local_max
in  Q: f32[E, P], BK: f32[E, M1, M0], BV: f32[F, M1, M0]
out AV: f32[F, P]

BQK[m1, m0, p] = Q[e, p] * BK[e, m1, m0] / sqrt(E)
LM[m1, p]      = BQK[m1, m0, p]                     :: max(m0)
SLN[m1, m0, p] = exp(BQK[m1, m0, p] - LM[m1, p])
SLD[m1, p]     = SLN[m1, m0, p]
GM[p]          = LM[m1, p]                          :: max(m1)
PLM[m1, p]     = exp(LM[m1, p] - GM[p])
SD[p]          = SLD[m1, p] * PLM[m1, p]
A[m1, m0, p]   = SLN[m1, m0, p] * PLM[m1, p] / SD[p]
AV[f, p]       = A[m1, m0, p] * BV[f, m1, m0]
