"""The mathematics of rectified flow. Time runs from t = 0 (noise) to t = 1 (data); `t` is `(B,)` everywhere."""
