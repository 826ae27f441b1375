# The gradient of attention: what `tcc grad attention_two_pass.tcc --saved GM,SD,AV` prints. The scores
# are computed again from the saved maximum and denominator of each row. The maximum has no adjoint:
# the result does not depend on it.
cascade attention_gradient
ranks E, P, M, F
in  Q: f32[E, P]
in  K: f32[E, M]
in  V: f32[F, M]
in  GM: f32[P]
in  SD: f32[P]
in  AV: f32[F, P]
in  d_AV: f32[F, P]
out d_Q: f32[E, P]
out d_K: f32[E, M]
out d_V: f32[F, M]

QK[m, p] = Q[e, p] * K[e, m] / sqrt(E)
SN[m, p] = exp(QK[m, p] - GM[p])
d_SNV[f, p] = d_AV[f, p] / SD[p]
d_SD[p] = -(d_AV[f, p] * AV[f, p] / SD[p])
d_SN_SNV[m, p] = d_SNV[f, p] * V[f, m]
d_SN[m, p] = d_SN_SNV[m, p] + d_SD[p]
d_QK[m, p] = d_SN[m, p] * SN[m, p]
d_Q[e, p] = d_QK[m, p] / sqrt(E) * K[e, m]
d_K[e, m] = d_QK[m, p] / sqrt(E) * Q[e, p]
d_V[f, m] = d_SNV[f, p] * SN[m, p]
