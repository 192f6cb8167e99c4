"""How fast, how large, how much memory: ``python -m scripts.benchmarks`` measures it and writes docs/benchmarks.md."""
