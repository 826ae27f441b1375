# A mean over a window of `W` neighbours. At the ends fewer neighbours exist: `where` keeps those
# inside, and the division counts them.
cascade moving_average
ranks W=5
in  X: f32[I]
out Y: f32[I]

Total[i] = X[i + w - W // 2]
Count[i] = 1.0  where i + w - W // 2 >= 0, i + w - W // 2 < I
Y[i]     = Total[i] / Count[i]
