# A sum that multiplies another one: inside it, `Y` has to be complete first, and `A` is read twice.
cascade product_twice
in  A: f32[K], B: f32[K]
out Z: f32

Y = A[k] * B[k]
Z = Y * A[k]
