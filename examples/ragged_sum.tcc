# A ragged rank: row `b` owns the values between two offsets.
cascade ragged_sum
in  X: f32[K], Off: i64[B + 1]
out Sum: f32[B], Largest: f32[B]

Sum[b]     = X[k]               where k in Off[b] .. Off[b + 1]
Largest[b] = X[k]  :: max(k)    where k in Off[b] .. Off[b + 1]
