# The same with `Y` behind the sum: one pass over `A`.
cascade product_twice_deferred
in  A: f32[K], B: f32[K]
out Z: f32

Y = A[k] * B[k]
X = A[k]
Z = Y * X
