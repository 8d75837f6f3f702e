"""Tokenizers of reports: trained on the training reports with Hugging Face ``tokenizers``, or any Hugging Face one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, MissingDependencyError, TrainingError
from ..files import written_whole
from ..weights.data_only import check_no_code
from .cleaning import UNKNOWN, mostly_chinese

KINDS = ("word", "bpe", "character")
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": UNKNOWN}
MIN_FREQUENCY = {"word": 3, "bpe": 2, "character": 1}
MAX_UNKNOWN = 0.05  # share of the training tokens; a model that cannot say more than that of its words is told of
KIND_FILE = "report_tokenizer.json"
# A word keeps what is inside it ("x-ray", "3.5", "don't"); every other mark is a token of its own.
WORDS = r"\w+(?:[-'/]\w+|(?<=\d)\.\d+)*|[^\w\s]"


class ReportTokenizer:
    """Text to ids and back.

    Attributes:
        backend: a ``transformers.PreTrainedTokenizerFast``, or whatever ``AutoTokenizer`` gave.
        kind: ``"word"``, ``"bpe"``, ``"character"`` or ``"hf"``.
        pad, bos, eos: ids of the special tokens.
        unk: id of unknown tokens, ``None`` if the tokenizer knows everything (bytes).
    """

    def __init__(self, backend: Any, kind: str) -> None:
        self.backend, self.kind = backend, kind
        eos = backend.eos_token_id
        if eos is None:
            raise ConfigError("tokenizer: it has no end-of-text token (eos_token), which a report has to end with")
        self.eos: int = eos
        self.bos: int = eos if backend.bos_token_id is None else backend.bos_token_id
        self.pad: int = eos if backend.pad_token_id is None else backend.pad_token_id
        unk = backend.unk_token_id
        self.unk: int | None = None if unk == eos else unk  # GPT-2 has one token for both, and bytes for everything

    def __len__(self) -> int:
        """Ids of all tokens, added ones included, lie below this."""
        return len(self.backend)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without start and end tokens; ``<eos>`` written in a report is text, not an end."""
        encoded = self.backend(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])

    def target(self, text: str, max_length: int) -> tuple[list[int], bool]:
        """Ids to be taught, with the end token, at most ``max_length`` of them; and whether the text was cut.

        A text that is cut has no end token, so that a model does not learn to stop in the middle.
        """
        ids = [*self.encode(text), self.eos]
        return ids[:max_length], len(ids) > max_length

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` up to the first end token; words are joined as they are written."""
        ids = [int(i) for i in ids]
        if self.eos in ids:
            ids = ids[: ids.index(self.eos)]
        silent = {self.pad, self.bos}  # <unk> is shown: a word that is not known must not vanish
        own = self.kind != "hf"
        ids = [i for i in ids if not (own and i in silent)]
        text = self.backend.decode(ids, skip_special_tokens=not own, clean_up_tokenization_spaces=False)
        return (join_words(text) if self.kind == "word" else text).strip()

    def unknown_share(self, texts: Iterable[str]) -> float:
        """Share of the tokens of ``texts`` that are unknown."""
        counts = Counter(token for text in texts for token in self.encode(text))
        return 0.0 if self.unk is None else counts[self.unk] / max(1, sum(counts.values()))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer and its kind into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save_pretrained(folder)
        with written_whole(folder / KIND_FILE) as temporary:
            temporary.write_text(json.dumps({"kind": self.kind, "size": len(self)}) + "\n")


def join_words(text: str) -> str:
    """Words and marks with spaces between all of them, written as usual: no space before a full stop or comma."""
    text = re.sub(r" ([.,;:?!%)\]])", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text)


def train_tokenizer(
    texts: Sequence[str], kind: str = "word", *, min_frequency: int | None = None, vocab_size: int = 8000
) -> ReportTokenizer:
    """Train a tokenizer.

    Args:
        texts: cleaned training reports.
        kind: ``"word"`` (words and punctuation marks, as R2Gen), ``"bpe"`` (byte-level byte pair encoding, any
            language) or ``"character"`` (for Chinese).
        min_frequency: tokens seen less often are unknown (word, character) or not merged (BPE); R2Gen has 3 for
            IU X-ray and 10 for MIMIC-CXR. Left out, :func:`frequency_floor`.
        vocab_size: largest number of tokens.

    Raises:
        ConfigError: an unknown kind, texts without a single token, or words asked of Chinese.
        MissingDependencyError: tokenizers or transformers is not installed.
    """
    tokenizers, transformers = import_text_libraries()
    if kind not in KINDS:
        raise ConfigError(f"tokenizer: got {kind!r}, accepted are {', '.join(map(repr, KINDS))} and Hugging Face names")
    if (min_frequency is not None and min_frequency < 1) or vocab_size <= len(SPECIAL):
        raise ConfigError(f"min_frequency is at least 1 and vocab_size at least {len(SPECIAL) + 1}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError("tokenizer: there is no text to train on")
    if kind == "word" and mostly_chinese(texts):
        raise ConfigError(
            "tokenizer: 'word' parts text at white space, which Chinese has not; take 'character' or 'bpe'"
        )
    if min_frequency is None:
        min_frequency = frequency_floor(texts, kind)
    special = list(SPECIAL.values())
    if kind == "bpe":
        from tokenizers import decoders, models, pre_tokenizers, trainers

        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
    else:
        made = _whole_tokens(texts, kind, min_frequency, vocab_size)
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **SPECIAL)
    return ReportTokenizer(backend, kind)


def frequency_floor(texts: Sequence[str], kind: str) -> int:
    """How often a token has to be seen, where nobody says: 3 times for words, 2 for BPE, once for characters.

    Once for words, too, where 3 would leave more than 5 % of them unknown: in small sets most words are rare, and those
    that tell reports apart are among them. (BPE would know them as well, but takes more tokens for a word there.)

    Args:
        texts: cleaned training reports.
        kind: as for :func:`train_tokenizer`.
    """
    floor = MIN_FREQUENCY[kind]
    if kind != "word":
        return floor
    counts = _token_counts(texts, _splitter(kind))
    rare = sum(count for count in counts.values() if count < floor)
    return 1 if rare > MAX_UNKNOWN * counts.total() else floor


def _splitter(kind: str):
    """What parts a text into words or characters."""
    tokenizers, _ = import_text_libraries()
    from tokenizers import pre_tokenizers

    if kind == "word":
        return pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    return pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")


def _token_counts(texts: Sequence[str], splitter) -> Counter[str]:
    return Counter(token for text in texts for token, _ in splitter.pre_tokenize_str(text))


def _whole_tokens(texts: Sequence[str], kind: str, min_frequency: int, vocab_size: int):
    """Word- or character-level tokenizer; most frequent tokens first, ties by name, so that it is reproducible."""
    import tokenizers
    from tokenizers import decoders, models

    splitter = _splitter(kind)
    counts = _token_counts(texts, splitter)
    for token in SPECIAL.values():
        counts.pop(token, None)
    frequent = sorted((t for t, n in counts.items() if n >= min_frequency), key=lambda t: (-counts[t], t))
    if not frequent:
        raise ConfigError(
            f"tokenizer: no token is seen {min_frequency} times in {len(texts)} reports; lower min_frequency"
        )
    vocabulary = [*SPECIAL.values(), *frequent[: vocab_size - len(SPECIAL)]]
    made = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    made.pre_tokenizer = splitter
    if kind == "character":
        made.decoder = decoders.Fuse()
    return made


def load_tokenizer(source: str | Path) -> ReportTokenizer:
    """A tokenizer that :meth:`ReportTokenizer.save` wrote, or any Hugging Face tokenizer by name or path.

    Raises:
        CheckpointError: it cannot be read, is not whole, or brings code.
    """
    _, transformers = import_text_libraries()
    kind, size = "hf", None
    marks = Path(source) / KIND_FILE
    check_no_code(source)
    try:
        if marks.is_file():
            settings = json.loads(marks.read_text())
            kind, size = settings["kind"], settings["size"]
            if kind != "hf":
                backend = transformers.PreTrainedTokenizerFast.from_pretrained(str(source), trust_remote_code=False)
        if kind == "hf":
            backend = transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except Exception as error:  # libraries raise OSError, ValueError and bare Exceptions for what is missing or damaged
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"tokenizer: {source} cannot be loaded ({reason})") from error
    if size is not None and len(backend) != size:
        raise CheckpointError(f"tokenizer: {source} has {len(backend)} tokens, and had {size} when it was saved")
    return ReportTokenizer(backend, kind)


def check_fits(tokenizer: ReportTokenizer, rows: int) -> None:
    """Raise a ConfigError unless every id has one of ``rows`` rows of an embedding table."""
    if len(tokenizer) > rows:
        raise ConfigError(
            f"tokenizer: it has {len(tokenizer)} tokens and the model has embeddings for {rows}; take the model's own "
            "tokenizer"
        )


def require_targets(texts: Sequence[str], tokenizer: ReportTokenizer, max_length: int) -> tuple[list[list[int]], int]:
    """Ids to be taught of every text, and how many were cut at ``max_length``.

    Raises:
        TrainingError: more than half of all tokens are unknown: the tokenizer is for another language.
    """
    share = tokenizer.unknown_share(texts)
    if share > 0.5:
        raise TrainingError(
            f"tokenizer: it does not know {share:.0%} of the tokens of the training reports; it is for another "
            "language, or its frequency floor is too high"
        )
    pairs = [tokenizer.target(text, max_length) for text in texts]
    return [ids for ids, _ in pairs], sum(cut for _, cut in pairs)


def unknown_warning(share: float, min_frequency: int | None, *, replaceable: bool = True) -> str | None:
    """What to say of a tokenizer that leaves many training tokens unknown, and what to do about it.

    Args:
        share: of the tokens of the training reports that are unknown.
        min_frequency: the tokenizer was trained with; ``None`` for one that was not trained here.
        replaceable: another tokenizer can be taken: the model is no language model, which has its own.

    Returns:
        A sentence, or ``None`` if the share is at most ``MAX_UNKNOWN``.
    """
    if share <= MAX_UNKNOWN:
        return None
    if not replaceable:
        remedy = "choose a language model whose tokenizer knows the language of the reports (language_model)"
    elif min_frequency is None:
        remedy = "set tokenizer to 'bpe', which knows every text, or to another one"
    elif min_frequency > 1:
        remedy = f"set min_frequency to 1 (it is {min_frequency}), or tokenizer to 'bpe', which knows every text"
    else:
        remedy = "raise vocab_size, or set tokenizer to 'bpe', which knows every text"
    return (
        f"{share:.1%} of the tokens of the training reports are unknown to the tokenizer, so the model can neither "
        f"learn nor write them; {remedy}"
    )


def import_text_libraries():
    """``(tokenizers, transformers)``, or an error that says how to install them."""
    try:
        import tokenizers
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"reports need {error.name}; install it with: pip install 'hdxray-fast[report]'"
        ) from error
    return tokenizers, transformers
