"""The package on disk, format 1: safe names, strict JSON and headers, the manifest, chunks, durable writing.

``schemas/SPEC-v1.md`` is the normative text; the modules here implement it.
"""
