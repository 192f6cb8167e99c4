#!/usr/bin/env python3
"""The ``residuals`` package at work, in bfloat16: its own float32 would be twice as large and slower.

python scripts/benchmarks/peers/residual.py extract BASE POST RESIDUALS
python scripts/benchmarks/peers/residual.py apply TARGET RESIDUALS OUT
"""

from __future__ import annotations

import sys

import torch
from residuals import Residuals
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def main() -> None:
    """Extract or apply."""
    verb, *places = sys.argv[1:]
    if verb == "extract":
        base, post, out = places
        made = Residuals.from_models(base, post, dtype=torch.bfloat16, normalize_embeddings=False)
        # It won't save without a tokenizer, and generated models have none; the smallest will do.
        made.instruct_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), unk_token="[UNK]"
        )
        made.save_pretrained(out)
    else:
        target, residuals, out = places
        Residuals.apply_to_pretrained(target, residuals, out_dir=out, dtype=torch.bfloat16, normalize_embeddings=False)


if __name__ == "__main__":
    main()
