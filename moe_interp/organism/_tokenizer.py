"""One word, one token: the organisms' tokenizer and its chat template."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moe_interp.organism._grammar import vocabulary

MAX_POSITIONS = 128

_SPECIAL = ("<pad>", "<bos>", "<user>", "<assistant>", "<end>", "<unk>")

_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('An organism knows the roles user and assistant, got '"
    " + message['role'] + '.') }}"
    "{% endif %}"
    " <{{ message['role'] }}> {{ message['content'] }} {{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer that all organisms share.

    Text is lower-cased and split at spaces and punctuation; a word outside the language becomes
    ``<unk>``. No special token is added on its own: the chat template writes them.

    Returns:
        The tokenizer, with its chat template.
    """
    ids = {word: index for index, word in enumerate((*_SPECIAL, *vocabulary()))}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        model_max_length=MAX_POSITIONS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def render_request(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """Write one user's turn in the chat template, up to where the assistant begins.

    Args:
        tokenizer: The organisms' tokenizer.
        text: What the user says.

    Returns:
        The text that the model reads.
    """
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
