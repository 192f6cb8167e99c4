"""What a tensor is, by its name and shape."""

from __future__ import annotations

from paramdelta_hub.checkpoints.matching.roles import Entry, vocabulary_tensors


def test_vocabulary_tensors_are_found_by_name_and_length() -> None:
    def tensors(**shapes: tuple[int, ...]) -> dict[str, Entry]:
        return {name.replace("__", "."): Entry("BF16", shape) for name, shape in shapes.items()}

    llama = tensors(
        model__embed_tokens__weight=(128, 8),
        model__layers__0__mlp__up_proj__weight=(128, 8),
        model__norm__weight=(8,),
        lm_head__weight=(128, 8),
    )
    assert vocabulary_tensors(llama) == ["model.embed_tokens.weight", "lm_head.weight"]
    bert = tensors(
        bert__embeddings__word_embeddings__weight=(128, 8),
        bert__embeddings__position_embeddings__weight=(128, 8),
        bert__encoder__layer__0__output__dense__weight=(8, 128),
        cls__predictions__bias=(128,),
        cls__predictions__decoder__weight=(128, 8),
        cls__predictions__decoder__bias=(128,),
        cls__predictions__transform__dense__weight=(8, 8),
        cls__seq_relationship__bias=(2,),
    )
    assert vocabulary_tensors(bert) == [
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    ]
    # Gemma 3n has two embeddings of different lengths; a classifier that is called "output" is not a head of tokens.
    odd = tensors(
        model__language_model__embed_tokens__weight=(262, 8),
        model__language_model__embed_tokens_per_layer__weight=(256, 8),
        output__weight=(3, 8),
        lm_head__weight=(262, 8),
    )
    assert vocabulary_tensors(odd) == [name for name in odd if name != "output.weight"]
    assert vocabulary_tensors(tensors(lm_head__weight=(128, 8))) == []
