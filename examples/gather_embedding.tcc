# Indirect access: an index may read a tensor. Row `Token[b]` of a table; a token outside the table
# reads the fill, 0.
cascade gather_embedding
in  Token: i64[B], Table: f32[V, D], Position: f32[B, D]
out X: f32[B, D]

X[b, d] = Table[Token[b], d] + Position[b, d]
