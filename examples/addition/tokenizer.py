"""The character-level tokenizer of the addition task, as Hugging Face and vLLM load it."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from examples.addition.task import ALPHABET

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PAD_ID, EOS_ID = 0, 1


def character_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """One token for each character of the task, and pad, end and unknown; nothing is added to what is encoded."""
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *ALPHABET))}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    characters.decoder = decoders.Fuse()  # without one, decoding puts a space between characters
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
