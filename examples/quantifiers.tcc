# Reductions over truth values, and counting: which of the values 0 … B - 1 occur, how often, and
# whether all of them do.
cascade quantifiers
ranks B=8
in  X: i32[I]
out Seen: bool[B], Count: i64[B], Full: bool

Hit[b, i] = X[i] == b
Seen[b]   = Hit[b, i]       :: any(i)
Count[b]  = i64(Hit[b, i])
Full      = Seen[b]         :: all(b)
