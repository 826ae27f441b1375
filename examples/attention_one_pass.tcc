# Attention in one pass over tiles of keys. The rank `M1` is iterative: a definition of `RM[m1 + 1]`
# reads `RM[m1]`. The state is the running maximum, the running denominator, and the running
# numerators; whenever the maximum grows, the old sums are corrected by `PRM`.
# `BK` and `BV` are the keys and values in M1 tiles of M0.
cascade attention_one_pass
in  Q: f32[E, P], BK: f32[E, M1, M0], BV: f32[F, M1, M0]
out AV: f32[F, P]

RM[0, p]     = -inf
RD[0, p]     = 0.0
RNV[0, f, p] = 0.0

BQK[m1, m0, p]    = Q[e, p] * BK[e, m1, m0] / sqrt(E)
LM[m1, p]         = BQK[m1, m0, p]                    :: max(m0)
RM[m1 + 1, p]     = max(RM[m1, p], LM[m1, p])
SLN[m1, m0, p]    = exp(BQK[m1, m0, p] - RM[m1 + 1, p])
SLD[m1, p]        = SLN[m1, m0, p]
SLNV[m1, f, p]    = SLN[m1, m0, p] * BV[f, m1, m0]
PRM[m1, p]        = exp(RM[m1, p] - RM[m1 + 1, p])
RD[m1 + 1, p]     = SLD[m1, p] + RD[m1, p] * PRM[m1, p]
RNV[m1 + 1, f, p] = SLNV[m1, f, p] + RNV[m1, f, p] * PRM[m1, p]
AV[f, p]          = RNV[M1, f, p] / RD[M1, p]
