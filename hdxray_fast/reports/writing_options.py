"""How text is chosen word by word: beams, sampling, lengths and repeats, as transformers' ``generate`` has them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class WritingOptions:
    """Decoding.

    Args:
        num_beams: beams of the search; 1 is greedy.
        sample: draw words at random instead of taking the best.
        temperature: of sampling; below 1 keeps closer to the best.
        top_p: sample from the most probable words that together have this probability.
        top_k: sample from that many of the most probable words; 0 for all.
        length_penalty: above 0 favours longer beams, below 0 shorter ones.
        no_repeat_ngram_size: 3 blocks every repeated trigram; 0 allows repeats.
        repetition_penalty: above 1 makes words that were written already less probable.
        min_length: fewest tokens of a text.
        max_length: most tokens of a text; the model's by default, which is its limit too.
        max_sentences: a text ends after so many sentences; left out, where the model ends it.
        sampling_seed: of words drawn at random.
    """

    num_beams: int = 3
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    min_length: int = 0
    max_length: int | None = None
    max_sentences: int | None = None
    sampling_seed: int = 0

    def __post_init__(self) -> None:
        least = {"num_beams": 1, "no_repeat_ngram_size": 0, "min_length": 0, "top_k": 0, "sampling_seed": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted is a whole number of at least {value}")
        if self.max_sentences is not None and not self.max_sentences >= 1:
            raise ConfigError(f"max_sentences: got {self.max_sentences}, accepted is a whole number of at least 1")
        for name in ("temperature", "repetition_penalty", "top_p"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: got {getattr(self, name)}, accepted is a number above 0")
        if self.top_p > 1:
            raise ConfigError(f"top_p: got {self.top_p}, accepted is a share above 0 and up to 1")
        if self.max_length is not None and not self.max_length > self.min_length:
            raise ConfigError(f"max_length: got {self.max_length}, accepted is more than min_length {self.min_length}")

    def for_transformers(self, limit: int, pad: int, bos: int, eos: int, unk: int | None = None):
        """transformers' ``GenerationConfig`` for texts of at most ``limit`` tokens.

        Args:
            limit: most tokens that the model was made for.
            pad, bos, eos: ids of the padding, start and end token.
            unk: id of the token of unknown words, which is never written; ``None`` if there is none.

        Raises:
            ConfigError: ``max_length`` is above ``limit``.
        """
        from transformers import GenerationConfig

        longest = limit if self.max_length is None else self.max_length
        if longest > limit:
            raise ConfigError(f"max_length: got {longest}, this model was made for texts of up to {limit} tokens")
        if self.min_length >= longest:
            raise ConfigError(f"min_length: got {self.min_length}, accepted is less than {longest}")
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k} if self.sample else {}
        beams = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        return GenerationConfig(
            max_new_tokens=longest,
            min_new_tokens=self.min_length or None,
            num_beams=self.num_beams,
            do_sample=self.sample,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            repetition_penalty=self.repetition_penalty,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
            decoder_start_token_id=bos,
            suppress_tokens=None if unk is None else [unk],
            **sampling,
            **beams,
        )
