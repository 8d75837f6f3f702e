"""Tokenizers of reports: trained on the training reports with Hugging Face ``tokenizers``, or any Hugging Face one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, MissingDependencyError
from ..extras import install
from ..files import written_whole
from ..regular_files import read_json
from ..weights.data_only import check_files, check_no_code
from ..weights.hub_retries import quiet_retries
from .cleaning import UNKNOWN, mostly_chinese

KINDS = ("word", "bpe", "character")
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": UNKNOWN}
MIN_FREQUENCY = {"word": 3, "bpe": 2, "character": 1}
MIN_PATIENTS = 5  # a word of fewer patients than that may be a name; who is given the model reads its vocabulary
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
    texts: Sequence[str],
    kind: str = "word",
    *,
    min_frequency: int | None = None,
    vocab_size: int = 8000,
    patients: Sequence[str] | None = None,
    min_patients: int = MIN_PATIENTS,
    digits: bool = False,
) -> ReportTokenizer:
    """Train a tokenizer.

    Args:
        texts: cleaned training reports.
        kind: ``"word"`` (words and punctuation marks, as R2Gen), ``"bpe"`` (byte-level byte pair encoding, any
            language) or ``"character"`` (for Chinese).
        min_frequency: tokens seen less often are unknown (word, character) or not merged (BPE); R2Gen has 3 for
            IU X-ray and 10 for MIMIC-CXR. Left out, :func:`frequency_floor`.
        vocab_size: largest number of tokens.
        patients: of each text; left out, every text is another patient's.
        min_patients: words (for ``"character"``: characters) in the reports of fewer patients are unknown; BPE merges
            nothing of them. 1 keeps all, as R2Gen does: names that are written often enough among them.
        digits: keep words with digits, too. Without, ``"word"`` leaves them unknown and BPE writes them byte by byte;
            a single digit is a character like any other.

    Raises:
        ConfigError: an unknown kind, texts without a single token, as many patients as texts are not given, or words
            asked of Chinese.
        MissingDependencyError: tokenizers or transformers is not installed.
    """
    tokenizers, transformers = import_text_libraries()
    if kind not in KINDS:
        raise ConfigError(f"tokenizer: got {kind!r}, accepted are {', '.join(map(repr, KINDS))} and Hugging Face names")
    if (min_frequency is not None and min_frequency < 1) or vocab_size <= len(SPECIAL):
        raise ConfigError(f"min_frequency is at least 1 and vocab_size at least {len(SPECIAL) + 1}")
    if min_patients < 1:
        raise ConfigError(f"min_patients: got {min_patients}, accepted is a whole number of at least 1")
    if patients is not None and len(patients) != len(texts):
        raise ConfigError(f"patients: got {len(patients)} for {len(texts)} texts, needed is one for each")
    named = list(zip(texts, range(len(texts)) if patients is None else patients, strict=True))
    named = [(text, patient) for text, patient in named if text.strip()]
    texts = [text for text, _ in named]
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
        if min_patients > 1 or not digits:
            splitter = made.pre_tokenizer
            common = _common(named, splitter, min_patients, digits)
            words = ([w for token, w in _pieces(text, splitter) if token in common] for text in texts)
            made.train_from_iterator(words, trainer)
        else:
            made.train_from_iterator(texts, trainer)
    else:
        common = _common(named, _splitter(kind), min_patients, digits or kind == "character")
        made = _whole_tokens(texts, kind, min_frequency, vocab_size, common, min_patients)
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


def _pieces(text: str, splitter) -> list[tuple[str, str]]:
    """What a splitter makes of a text, and how each piece is written there."""
    return [(token, text[start:end]) for token, (start, end) in splitter.pre_tokenize_str(text)]


def _common(texts: Sequence[tuple[str, object]], splitter, min_patients: int, digits: bool) -> set[str]:
    """Tokens in the texts of so many patients, where asked for without those that hold a digit."""
    of: dict[str, set] = {}
    for text, patient in texts:
        for token, written in _pieces(text, splitter):
            if digits or not any(letter.isdigit() for letter in written):
                of.setdefault(token, set()).add(patient)
    return {token for token, patients in of.items() if len(patients) >= min_patients}


def _whole_tokens(
    texts: Sequence[str], kind: str, min_frequency: int, vocab_size: int, common: set[str], min_patients: int
):
    """Word- or character-level tokenizer; most frequent tokens first, ties by name, so that it is reproducible."""
    import tokenizers
    from tokenizers import decoders, models

    splitter = _splitter(kind)
    counts = _token_counts(texts, splitter)
    for token in SPECIAL.values():
        counts.pop(token, None)
    known = (t for t, n in counts.items() if n >= min_frequency and t in common)
    frequent = sorted(known, key=lambda t: (-counts[t], t))
    if not frequent:
        raise ConfigError(
            f"tokenizer: no token is seen {min_frequency} times in {len(texts)} reports, in those of {min_patients} "
            "patients; lower min_frequency or min_patients"
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
    check_files(source)
    try:
        if marks.is_file():
            settings = read_json(marks)
            kind, size = settings["kind"], settings["size"]
            if kind != "hf":
                backend = transformers.PreTrainedTokenizerFast.from_pretrained(str(source), trust_remote_code=False)
        if kind == "hf":
            with quiet_retries(f"tokenizer: {source}"):
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


def import_text_libraries():
    """``(tokenizers, transformers)``, or an error that says how to install them."""
    try:
        import tokenizers
        import transformers
    except ImportError as error:
        raise MissingDependencyError(f"reports need {error.name}; install it with: {install('report')}") from error
    return tokenizers, transformers
