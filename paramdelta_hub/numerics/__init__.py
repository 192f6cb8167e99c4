"""Floats on flat NumPy arrays, pure: Δ = post − base, target ⊕ Δ, 8-bit floats, and the loops that compute them."""
