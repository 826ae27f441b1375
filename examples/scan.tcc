# Running sums and running maxima along `I`: a recurrence per column.
cascade scan
in  X: f32[I, J]
out Total: f32[I, J], Peak: f32[I, J]

Sum[0, j]     = 0.0
Sum[i + 1, j] = Sum[i, j] + X[i, j]
Top[0, j]     = -inf
Top[i + 1, j] = max(Top[i, j], X[i, j])
Total[i, j]   = Sum[i + 1, j]
Peak[i, j]    = Top[i + 1, j]
