"""Bytes: container, bit packing, entropy models and the shared random generator. No torch, no networks.

`docs/format.md` specifies everything in this folder bit by bit.
"""
