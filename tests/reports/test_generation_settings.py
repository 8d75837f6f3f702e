"""How text is chosen is what the options say, whatever generation settings came with a language model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from report_model_makers import small_encoder, small_language_model

pytest.importorskip("transformers")

from hdxray_fast.reports.model import create_report_model
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.reports.text_models import import_text_models
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
