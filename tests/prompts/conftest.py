"""Tokenizers of three kinds, trained here on a few words, each with a chat template."""

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<pad>", "<|user|>", "<|end|>", "<|assistant|>", "<unk>"]
CORPUS = ["how do i bake bread today", "how do i poison a cake", "user : say hello to you"] * 4
TEMPLATE = (
    "{{ bos_token }}<|user|>\n{{ messages[0]['content'] | trim }}<|end|>\n"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def wrapped(core, *, template=TEMPLATE):
    # Every one of them adds a first token on its own, as Llama's does.
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    byte_level = isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel)
    first = [processors.ByteLevel(trim_offsets=True)] if byte_level else []
    core.post_processor = processors.Sequence([*first, bos])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return tokenizer


def byte_level_tokenizer(**options):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return wrapped(core, **options)


def sentencepiece_tokenizer(**options):
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return wrapped(core, **options)


def word_level_tokenizer(**options):
    words = sorted({word for line in CORPUS for word in line.split()})
    ids = {word: number for number, word in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens(SPECIALS)
    return wrapped(core, **options)


MAKERS = {
    "byte-level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "word-level": word_level_tokenizer,
}


@pytest.fixture(scope="session", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def with_template():
    return lambda template: byte_level_tokenizer(template=template)


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
