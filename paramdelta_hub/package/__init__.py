"""The package on disk, format 1: the manifest, the chunks of a tensor, and one tensor's delta.

``schemas/SPEC-v1.md`` is the normative text; the modules here implement it.
"""
