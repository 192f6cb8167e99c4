"""Verify: is a package whole, and is it the delta that it says; what others' tools read about an applied model."""
