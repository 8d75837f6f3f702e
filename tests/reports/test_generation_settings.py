"""How text is chosen is what the options say, whatever a language model's checkpoint brings; never an unknown word."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from report_model_makers import ENGLISH, small_encoder, small_language_model

pytest.importorskip("transformers")

from hdxray_fast.reports.model import create_report_model
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.reports.saving import load_report_model, save_report_model
from hdxray_fast.reports.text_models import import_text_models
from hdxray_fast.reports.text_tokenizers import ReportTokenizer, train_tokenizer
from hdxray_fast.reports.visual_tokens import Views, ViewTokens
from hdxray_fast.reports.writing_options import WritingOptions

HOSTILE = {
    "do_sample": True,
    "temperature": 7.0,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.2,
    "typical_p": 0.5,
    "num_beams": 2,
    "length_penalty": -5.0,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 2,
    "min_length": 7,
    "max_length": 9,
    "max_new_tokens": 2,
    "forced_bos_token_id": 17,
    "forced_eos_token_id": 18,
    "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(200, 300)),
    "bad_words_ids": [[token] for token in range(300, 400)],
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "eos_token_id": [5, 6],
    "pad_token_id": 7,
    "bos_token_id": 8,
}
SAMPLING = {"do_sample": True, "temperature": 2.0, "top_p": 0.9}  # as published chat models have it
OPTIONS = {
    "greedy": WritingOptions(num_beams=1),
    "beams": WritingOptions(num_beams=3),
    "sampled": WritingOptions(num_beams=1, sample=True, temperature=0.7, top_k=5),
    "sampled from all words": WritingOptions(num_beams=1, sample=True),
    "blocked": WritingOptions(num_beams=2, no_repeat_ngram_size=3, min_length=4, max_length=11, repetition_penalty=1.2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One language model, as it is and with two kinds of generation settings of its own."""
    import_text_models()
    pytest.importorskip("peft")
    plain = small_language_model(tmp_path_factory.mktemp("models") / "plain")
    made = {"plain": plain}
    for name, settings in {"hostile": HOSTILE, "sampling": SAMPLING}.items():
        made[name] = shutil.copytree(plain, plain.with_name(name))
        settings = {**settings, "transformers_version": "4.57.0"}  # those from 4.50 on are heeded most
        (made[name] / "generation_config.json").write_text(json.dumps(settings))
    return made


def written(folder, options: WritingOptions, rank: int = 0) -> list[list[int]]:
    config = ReportModelConfig(
        decoder="language-model", language_model=str(folder), lora_rank=rank, max_length=16, visual_tokens=4
    )
    torch.manual_seed(1)
    model = create_report_model(small_encoder(), None, config).eval()
    torch.manual_seed(2)
    tokens = ViewTokens(torch.randn(2, 4, model.encoder.num_features), torch.ones(2, 4, dtype=torch.bool))
    brought = (model.decoder.model.get_base_model() if rank else model.decoder.model).generation_config
    before = brought.to_dict()
    ids = model.write(tokens, Views.of_counts([1, 1]), options)[1]
    after = (model.decoder.model.get_base_model() if rank else model.decoder.model).generation_config
    assert after is brought and after.to_dict() == before  # what the checkpoint brought stays with it
    return ids


@pytest.mark.filterwarnings("ignore")  # transformers' own, on settings that make no sense together
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_decide(folders, name, rank):
    expected = written(folders["plain"], OPTIONS[name], rank)
    assert max(map(len, expected)) > 3
    assert written(folders["hostile"], OPTIONS[name], rank) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 3])
def test_without_sampling_no_seed_changes_a_text(folders, beams):
    texts = [written(folders["sampling"], WritingOptions(num_beams=beams, sampling_seed=seed)) for seed in range(4)]
    assert texts[1:] == texts[:-1]


# --- unknown words ----------------------------------------------------------------------------------------------------
DECODERS = {
    "transformer": {"decoder": "transformer"},
    "relational": {"decoder": "relational"},
    "language model": {"decoder": "language-model"},
    "tuned language model": {"decoder": "language-model", "lora_rank": 2},
}
SMALL = {"width": 32, "heads": 4, "ffn": 40, "layers": 1, "max_length": 16, "visual_tokens": 4}


def fond_of(model, token: int):
    """``model``, which now prefers ``token`` to all others by far, whatever it has read."""
    inner = model.decoder.model
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def prefer(module, inputs, out):
        out.logits[..., token] += 1000.0

    inner.register_forward_hook(prefer)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DECODERS)
def test_unknown_words_are_never_written(folders, name, tmp_path):
    options = {**SMALL, **DECODERS[name]}
    own = options["decoder"] == "language-model"
    tokenizer = None if own else train_tokenizer(ENGLISH, "word", min_frequency=2, min_patients=1, digits=True)
    source = {"language_model": str(folders["plain"])} if own else {}
    torch.manual_seed(1)
    made = create_report_model(small_encoder(), tokenizer, ReportModelConfig(**options, **source)).eval()
    save_report_model(made, tmp_path / "model")
    tokens = ViewTokens(torch.randn(2, 4, made.encoder.num_features), torch.ones(2, 4, dtype=torch.bool))
    views, unk = Views.of_counts([1, 1]), made.tokenizer.unk
    for model in (made, load_report_model(tmp_path / "model", "cpu")):
        fond_of(model, unk)
        would = model.decoder.generate(model._studies(tokens, views), WritingOptions(num_beams=1))
        assert would == [[unk] * 16] * 2
        for writing in OPTIONS.values():
            texts, ids = model.write(tokens, views, writing)
            assert not any(unk in row for row in ids) and not any("<unk>" in text for text in texts)
            assert any(ids)


@pytest.mark.parametrize("decoder", ["transformer", "relational"])
def test_nor_by_transformers_alone(decoder, tmp_path):
    """The saved decoder says it in its own generation settings, for ``AutoModelForSeq2SeqLM``."""
    tokenizer = train_tokenizer(ENGLISH, "word", min_frequency=2, min_patients=1, digits=True)
    model = create_report_model(small_encoder(), tokenizer, ReportModelConfig(**SMALL, decoder=decoder))
    save_report_model(model, tmp_path / "model")
    inner = fond_of(load_report_model(tmp_path / "model", "cpu"), tokenizer.unk).decoder.model
    written = inner.generate(inputs_embeds=torch.randn(1, 4, 32), max_new_tokens=8, num_beams=1)
    assert tokenizer.unk not in written[0].tolist() and written.shape[1] > 2


def test_an_end_token_that_stands_for_unknown_words_too_is_written():
    """As GPT-2's: without it no text would end."""
    transformers = import_text_models()
    made = train_tokenizer(ENGLISH, "bpe", min_patients=1, digits=True).backend.backend_tokenizer
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<eos>")
    tokenizer = ReportTokenizer(backend, "hf")
    model = create_report_model(small_encoder(), tokenizer, ReportModelConfig(**SMALL)).eval()
    tokens = ViewTokens(torch.randn(1, 4, model.encoder.num_features), torch.ones(1, 4, dtype=torch.bool))
    assert fond_of(model, tokenizer.eos).write(tokens, Views.of_counts([1]))[1] == [[]]
