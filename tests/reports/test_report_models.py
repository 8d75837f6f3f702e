"""Report models: visual tokens, three decoders, writing, saving."""

from __future__ import annotations

import json
import math

import pytest
import torch
from recorded_graph import NoWaits
from report_model_makers import CHINESE, ENGLISH, SIZE, small_encoder, small_language_model

pytest.importorskip("transformers")

from hdxray_fast.errors import ArgumentError, CheckpointError, ConfigError
from hdxray_fast.models.encoder import Tokens
from hdxray_fast.ops.mask_plan import plan_masks
from hdxray_fast.reports import seq2seq
from hdxray_fast.reports.model import create_report_model, pad_targets
from hdxray_fast.reports.model_config import ReportModelConfig
from hdxray_fast.reports.saving import load_report_model, save_report_model
from hdxray_fast.reports.sentences import first_sentences, sentence_spans, sentence_tokens
from hdxray_fast.reports.text_models import import_text_models
from hdxray_fast.reports.text_tokenizers import train_tokenizer
from hdxray_fast.reports.visual_tokens import StudyTokens, Views, ViewTokens, VisualTokens, pool_grid
from hdxray_fast.reports.writing_options import WritingOptions

SMALL = {"width": 32, "heads": 4, "ffn": 40, "layers": 2, "max_length": 24, "visual_tokens": 4}
LANGUAGE_MODELS = ("llama", "gpt2")


@pytest.fixture(scope="module", autouse=True)
def transformers():
    found = import_text_models()
    found.utils.logging.set_verbosity_error()
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(ENGLISH, "word", min_frequency=1, min_patients=1, digits=True)


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("language_models")
    return {kind: small_language_model(root / kind, kind) for kind in LANGUAGE_MODELS}


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 255, (count, 1, SIZE, SIZE), dtype=torch.uint8)


def report_model(tokenizer, **options):
    torch.manual_seed(1)
    model = create_report_model(small_encoder(), tokenizer, ReportModelConfig(**{**SMALL, **options})).eval()
    for parameter in model.decoder.parameters():  # words that depend on the image and on the words before
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data.mul_(1.5)
    return model


def view_tokens(model, count: int) -> ViewTokens:
    torch.manual_seed(count)
    known = torch.rand(count, model.visual.count) < 0.8
    known[:, 0] = True
    return ViewTokens(torch.randn(count, model.visual.count, model.encoder.num_features), known)


# --- visual tokens ----------------------------------------------------------------------------------------------------
def test_grid_pools_kept_patches_alone():
    torch.manual_seed(0)
    inside = torch.rand(3, 7, 5) < 0.4
    inside[2] = False
    inside[2, 0, 0] = True
    plan = plan_masks(inside, torch.ones_like(inside), ratio_inside=0.0, ratio_outside=1.0, predict=0.0)
    cu_seqlens = plan.keep_cu_seqlens + 2 * torch.arange(4, dtype=torch.int32)
    tokens = Tokens(torch.randn(int(cu_seqlens[-1]), 6), cu_seqlens)
    pooled = pool_grid(tokens, plan, 9, num_prefix=2)
    assert pooled.values.shape == (3, 9, 6) and pooled.known.shape == (3, 9)
    for image in range(3):
        values = tokens.values[cu_seqlens[image] + 2 : cu_seqlens[image + 1]]
        places = inside[image].flatten().nonzero().flatten()
        for cell in range(9):
            mine = [v for v, p in zip(values, places, strict=True) if (p // 5 * 3 // 7) * 3 + p % 5 * 3 // 5 == cell]
            assert bool(pooled.known[image, cell]) == bool(mine)
            expected = torch.stack(mine).mean(0) if mine else torch.zeros(6)
            torch.testing.assert_close(pooled.values[image, cell], expected)
    assert pooled.known[2].sum() == 1


@pytest.mark.parametrize("keep", ["all", "contour"])
@pytest.mark.parametrize("pool", ["grid", "attention"])
def test_shares_say_what_visual_tokens_are_made_of(tokenizer, pool, keep):
    model = report_model(tokenizer, pool=pool, keep=keep, visual_tokens=4)
    inside = torch.rand(3, 6, 6) < 0.5
    plan = model.plan(images(3), inside, torch.ones(3, 6, 6, dtype=torch.bool))
    with torch.no_grad():
        tokens = model.encoder.encode(images(3), plan)
    shares = model.visual.shares(tokens, plan, 1)
    sizes = plan.keep_cu_seqlens.diff().tolist()
    assert [tuple(share.shape) for share in shares] == [(4, 36)] * 3
    assert [int((share.sum(0) > 0).sum()) for share in shares] == sizes
    if pool == "grid":
        made = model.resample(tokens, plan)
        grid = torch.zeros(3, 36, 48)
        for image, (first, last) in enumerate(zip(tokens.cu_seqlens, tokens.cu_seqlens[1:], strict=False)):
            ids = plan.keep_ids[plan.keep_cu_seqlens[image] : plan.keep_cu_seqlens[image + 1]].long()
            grid[image, ids] = tokens.values[first + 1 : last]
        torch.testing.assert_close(torch.stack(shares) @ grid, made.values)
    else:
        sums = torch.stack(shares).sum(2)
        assert sums.min() > 0.5 and sums.max() < 1  # the class token has a part


def test_shares_of_the_attention_pool_are_its_weights():
    torch.manual_seed(0)
    visual = VisualTokens(dim=8, width=12, count=3, pool="attention", max_views=1, num_heads=1)
    values = torch.randn(11, 8)
    attn = visual.attend.cross_attn
    cu = lambda n: torch.tensor([0, n], dtype=torch.int32)  # noqa: E731
    out = attn(visual.attend.norm1(visual.queries), values, cu(3), cu(11), 3, 11)
    v = attn.kv(values)[:, 8:]
    torch.testing.assert_close(out, attn.proj(visual._weights(values) @ v))


@pytest.mark.parametrize("pool", ["grid", "attention"])
def test_standardised_tokens_tell_images_apart(pool):
    torch.manual_seed(0)
    visual = VisualTokens(dim=5, width=12, count=4, pool=pool, max_views=1, num_heads=1)
    place = 10 * torch.randn(4, 5)
    images = [place + 0.3 * torch.randn(4, 5) for _ in range(40)]
    known = [torch.rand(4) < 0.8 for _ in images]
    visual.standardise(zip(images, known, strict=True))
    made = visual._standardised(torch.stack(images))
    here = torch.stack(known)
    if pool == "grid":  # each cell about its own mean
        for cell in range(4):
            torch.testing.assert_close(made[here[:, cell], cell].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
        assert 0.5 < made[here].std() <= 1.02
    torch.testing.assert_close(made[here].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    other = VisualTokens(dim=5, width=12, count=4, pool=pool, max_views=1, num_heads=1)
    other.standardise([(images[0], known[0])])  # one image has no mean to be told from
    assert torch.equal(other._standardised(place), place)
    visual.standardise([(place, known[0])] * 3)  # nor have copies: nothing becomes infinite
    assert visual._standardised(place + 1).isfinite().all()


def test_views_are_marked_and_padding_is_not_read(tokenizer):
    model = report_model(tokenizer)
    tokens = view_tokens(model, 5)
    views = Views.of_counts([2, 1, 2])
    targets = pad_targets([tokenizer.target(text, 24)[0] for text in ENGLISH[:3]])
    with torch.no_grad():
        whole = model.decoder.logits(model._studies(tokens, views), targets)
        alone = model.decoder.logits(
            model._studies(ViewTokens(tokens.values[2:3], tokens.known[2:3]), Views.of_counts([1])), targets[1:2]
        )
        words = targets[1] >= 0
        torch.testing.assert_close(whole[1, words], alone[0, words], rtol=1e-4, atol=1e-4)
        swapped = ViewTokens(tokens.values[[1, 0, 2, 3, 4]], tokens.known[[1, 0, 2, 3, 4]])
        other = model.decoder.logits(model._studies(swapped, views), targets)
    assert (other[0, 0] - whole[0, 0]).abs().max() > 1e-4  # front and side are told apart
    torch.testing.assert_close(other[2], whole[2])
    with pytest.raises(ArgumentError, match="a study has 3 images"):
        model._studies(view_tokens(model, 3), Views.of_counts([3]))


# --- encoder-decoders -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decoder", ["transformer", "relational"])
@pytest.mark.parametrize("beams", [1, 4])
def test_words_written_one_by_one_are_those_of_teacher_forcing(tokenizer, decoder, beams):
    """Cache and memory included: the scores of ``generate`` are the log-probabilities of the whole text at once."""
    model = report_model(tokenizer, decoder=decoder, memory_slots=2)
    for parameter in model.decoder.parameters():  # far from what some version starts with, so that texts differ
        if parameter.ndim > 1 and parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    studies = model._studies(view_tokens(model, 5), Views.of_counts([2, 1, 2]))
    c = model.decoder.model.config
    settings = WritingOptions(num_beams=beams, max_length=13).for_transformers(
        24, c.pad_token_id, c.bos_token_id, c.eos_token_id
    )
    settings.return_dict_in_generate = settings.output_scores = settings.output_logits = True
    settings.num_return_sequences = beams
    inner = model.decoder.model
    with torch.no_grad():
        out = inner.generate(
            inputs_embeds=studies.values, attention_mask=studies.mask.long(), generation_config=settings
        )
        inner.generate(inputs_embeds=studies.values[:1], attention_mask=studies.mask[:1].long(), max_new_tokens=3)
    written = out.sequences[:, 1:]
    ended = (written == c.eos_token_id).cumsum(1)
    targets = written.masked_fill((ended - (written == c.eos_token_id).long()) > 0, -100)
    wide = type(studies)(studies.values.repeat_interleave(beams, 0), studies.mask.repeat_interleave(beams, 0))
    with torch.no_grad():
        logits = model.decoder.logits(wide, targets)
    assert len({tuple(row) for row in written.tolist()}) > 1
    if beams == 1:
        stepwise = torch.stack(out.logits, 1)  # [B, T, V]
        here = targets >= 0
        torch.testing.assert_close(stepwise[here], logits[:, : stepwise.shape[1]][here], rtol=1e-4, atol=1e-4)
        return
    of_words = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    here = targets >= 0
    expected = (of_words * here).sum(1) / here.sum(1)
    torch.testing.assert_close(out.sequences_scores, expected, rtol=1e-4, atol=1e-4)


def test_relational_memory_follows_its_equations():
    from hdxray_fast.reports.relational import RelationalMemory

    torch.manual_seed(0)
    memory = RelationalMemory(6, 3, num_heads=1).eval()
    words = torch.randn(2, 5, 6)
    after, last = memory(words)
    assert after.shape == (2, 5, 18) and last.shape == (2, 3, 6)
    first, state = memory(words[:, :2])
    rest, end = memory(words[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), after)
    torch.testing.assert_close(end, last)
    # one word, written out: attention of the slots to slots and word, residual MLP, gates
    m, y = torch.eye(3, 6), words[0, :1]
    w, b = memory.attn.in_proj_weight, memory.attn.in_proj_bias
    seen = torch.cat([m, y])
    q, k, v = m @ w[:6].T + b[:6], seen @ w[6:12].T + b[6:12], seen @ w[12:].T + b[12:]
    z = torch.softmax(q @ k.T / math.sqrt(6), -1) @ v
    new = m + memory.attn.out_proj(z)
    new = new + memory.mlp(new)
    gates = torch.sigmoid(memory.word_gates(y) + memory.memory_gates(torch.tanh(m)))
    expected = gates[:, :6] * torch.tanh(new) + gates[:, 6:] * m
    torch.testing.assert_close(after[0, 0], expected.flatten())


def test_memory_moves_the_decoder(tokenizer):
    plain, model = report_model(tokenizer), report_model(tokenizer, decoder="relational")
    norms = [name for name, _ in model.named_parameters() if ".gain." in name]
    assert len(norms) == 2 * 3 * 4 and not [name for name, _ in plain.named_parameters() if ".gain." in name]
    targets = pad_targets([tokenizer.target(text, 24)[0] for text in ENGLISH[:2]])
    model.train()(targets, Views.of_counts([1, 1]), view_tokens=view_tokens(model, 2)).backward()
    memory = model.decoder.model.memory
    assert all(parameter.grad.abs().sum() > 0 for parameter in memory.parameters() if parameter.dim() > 1)


def test_label_smoothing_and_padding(tokenizer):
    model = report_model(tokenizer)
    tokens, views = view_tokens(model, 2), Views.of_counts([1, 1])
    targets = pad_targets([tokenizer.target(ENGLISH[0], 24)[0], tokenizer.target(ENGLISH[1], 5)[0]])
    assert targets[1].tolist()[5:] == [-100] * (targets.shape[1] - 5)
    logits = model.decoder.logits(model._studies(tokens, views), targets)
    here = targets >= 0
    log = logits[here].log_softmax(-1)
    expected = -0.9 * log.gather(1, targets[here].unsqueeze(1)).mean() - 0.1 * log.mean()
    torch.testing.assert_close(model(targets, views, view_tokens=tokens, label_smoothing=0.1), expected)


# --- choosing words ---------------------------------------------------------------------------------------------------
def test_trigrams_are_blocked_and_lengths_kept(tokenizer):
    model = report_model(tokenizer)
    tokens, views = view_tokens(model, 3), Views.of_counts([1, 1, 1])
    for beams in (1, 3):
        options = WritingOptions(num_beams=beams, no_repeat_ngram_size=3, min_length=9, max_length=17)
        _, ids = model.write(tokens, views, options)
        for row in ids:
            assert 9 <= len(row) + (len(row) < 17) <= 17
            trigrams = [tuple(row[i : i + 3]) for i in range(len(row) - 2)]
            assert len(set(trigrams)) == len(trigrams)


def test_sampling_depends_on_its_seed_alone(tokenizer):
    model = report_model(tokenizer)
    tokens, views = view_tokens(model, 2), Views.of_counts([1, 1])
    draw = lambda seed: model.write(tokens, views, WritingOptions(num_beams=1, sample=True, sampling_seed=seed))[1]  # noqa: E731
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = draw(1)
    torch.testing.assert_close(torch.rand(3), expected)
    assert draw(1) == first != draw(2)


def test_a_text_ends_after_so_many_sentences(tokenizer, monkeypatch):
    model = report_model(tokenizer)
    whole = tokenizer.encode("The heart is normal. No effusion.")
    monkeypatch.setattr(model.decoder, "generate", lambda *_: [whole, whole[:3]])
    tokens, views = view_tokens(model, 2), Views.of_counts([1, 1])
    texts, ids = model.write(tokens, views, WritingOptions(max_sentences=1))
    assert ids == [first_sentences(tokenizer, whole, 1), whole[:3]] and len(ids[0]) < len(whole)
    assert texts == [tokenizer.decode(row) for row in ids]
    assert model.write(tokens, views, WritingOptions(max_sentences=2))[1] == [whole, whole[:3]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"top_p": 1.5}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"min_length": 5, "max_length": 5}, "max_length"),
        ({"max_length": 25}, "up to 24 tokens"),
        ({"min_length": 24}, "min_length"),
        ({"max_sentences": 0}, "max_sentences"),
    ],
)
def test_options_that_cannot_be(tokenizer, options, match):
    model = report_model(tokenizer)
    with pytest.raises(ConfigError, match=match):
        model.write(view_tokens(model, 1), Views.of_counts([1]), WritingOptions(**options))


# --- language models --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@pytest.mark.parametrize("rank", [0, 4])
def test_language_model_alone_and_in_a_batch(language_models, kind, rank):
    options = {"decoder": "language-model", "language_model": str(language_models[kind]), "lora_rank": rank}
    model = report_model(None, **options)
    trained = {name for name, parameter in model.decoder.named_parameters() if parameter.requires_grad}
    assert bool(trained) == bool(rank) and all("lora_" in name for name in trained)
    kept = {name for name in model.state_dict() if name.startswith("decoder.")}
    assert kept == {f"decoder.{name}" for name in trained}
    model.load_state_dict(model.state_dict())
    tokens, views = view_tokens(model, 5), Views.of_counts([2, 1, 2])
    one = ViewTokens(tokens.values[2:3], tokens.known[2:3])
    targets = pad_targets([model.tokenizer.target(text, 24)[0] for text in (ENGLISH[0], ENGLISH[1], CHINESE[0])])
    with torch.no_grad():
        whole = model.decoder.logits(model._studies(tokens, views), targets)
        alone = model.decoder.logits(model._studies(one, Views.of_counts([1])), targets[1:2])
    words = targets[1] >= 0
    torch.testing.assert_close(whole[1, words], alone[0, words], rtol=1e-4, atol=1e-4)
    for options in (WritingOptions(num_beams=1), WritingOptions(num_beams=3)):
        assert model.write(tokens, views, options)[1][1] == model.write(one, Views.of_counts([1]), options)[1][0]
    greedy = model.write(tokens, views, WritingOptions(num_beams=1))[1][0]
    with torch.no_grad():
        logits = model.decoder.logits(model._studies(tokens, views), pad_targets([greedy, greedy, greedy]))
    assert logits[0].argmax(-1).tolist() == greedy


@pytest.mark.parametrize("left", [False, True])
def test_rows_of_a_language_model_have_no_gaps_and_need_no_wait(language_models, left):
    options = {"decoder": "language-model", "language_model": str(language_models["llama"])}
    decoder = report_model(None, **options).decoder
    torch.manual_seed(0)
    known = torch.tensor([[True, False, True, True], [False, False, False, True]])
    visual = StudyTokens(torch.randn(2, 4, decoder.width), known)
    texts = torch.tensor([[7, 8, -100], [9, 5, 6]])
    with torch.no_grad(), NoWaits():
        rows, real, starts = decoder._rows(visual, texts, left)
    embed = decoder.model.get_input_embeddings()
    for i, words in enumerate(([7, 8], [9, 5, 6])):
        before, after, text = (embed(ids) for ids in (decoder.before, decoder.after, torch.tensor(words)))
        expected = torch.cat([before, visual.values[i][known[i]], after, text])
        place = slice(rows.shape[1] - len(expected), None) if left else slice(len(expected))
        assert torch.equal(rows[i, place], expected)
        assert real[i].sum() == len(expected) and bool(real[i, place].all())
        assert not rows[i][real[i] == 0].any()
        assert int(starts[i]) == range(rows.shape[1])[place].stop - len(words)


@pytest.mark.parametrize("decoder", ["transformer", "relational"])
def test_whole_masks_are_those_that_transformers_makes(tokenizer, monkeypatch, decoder):
    model = report_model(tokenizer, decoder=decoder)
    studies = model._studies(view_tokens(model, 5), Views.of_counts([2, 1, 2]))
    assert not studies.mask.all()
    targets = pad_targets([tokenizer.target(text, 24)[0] for text in ENGLISH[:3]])
    with torch.no_grad():
        with NoWaits():
            found = model.decoder.logits(studies, targets)
        monkeypatch.setattr(seq2seq, "whole_masks", lambda mask, length: {"attention_mask": mask.long()})
        torch.testing.assert_close(found, model.decoder.logits(studies, targets), rtol=1e-5, atol=1e-5)


def test_a_frozen_language_model_learns_through_the_projection(language_models):
    options = {"decoder": "language-model", "language_model": str(language_models["llama"]), "pool": "attention"}
    model = report_model(None, **options).train()
    assert not model.decoder.model.training  # no dropout in what cannot learn
    before = {name: tensor.clone() for name, tensor in model.decoder.model.state_dict().items()}
    trained = [parameter for name, parameter in model.named_parameters() if name.startswith("visual.")]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    targets = pad_targets([model.tokenizer.target(text, 24)[0] for text in ENGLISH[:2]])
    with torch.no_grad():
        tokens, losses = model.encoder.encode(images(2)), []
    plan = model.plan(images(2))
    for _ in range(12):
        loss = model(targets, Views.of_counts([1, 1]), tokens=tokens, plan=plan)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.005 and min(losses) == min(losses[-3:])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.decoder.model.state_dict().items())


def test_language_models_that_do_not_fit(language_models, tokenizer, tmp_path):
    path = str(language_models["gpt2"])
    settings = {"decoder": "language-model", "language_model": path}
    with pytest.raises(ConfigError, match="reads its own tokens, a word tokenizer"):
        report_model(tokenizer, **settings)
    with pytest.raises(ConfigError, match="the language model has 256"):
        report_model(None, **{**settings, "max_length": 300})
    with pytest.raises(CheckpointError, match=r"there is no folder .*nothing_here"):
        report_model(None, **{**settings, "language_model": str(tmp_path / "nothing_here")})


# --- attention --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decoder", ["transformer", "relational", "language-model"])
@pytest.mark.parametrize("pool", ["grid", "attention"])
def test_attention_is_a_share_of_each_image(tokenizer, language_models, decoder, pool):
    options = {"decoder": decoder, "pool": pool}
    if decoder == "language-model":
        options["language_model"], tokenizer = str(language_models["llama"]), None
    model = report_model(tokenizer, **options)
    shown, views = images(3), Views.of_counts([2, 1])
    plan = model.plan(shown)
    with torch.no_grad():
        tokens = model.encoder.encode(shown, plan)
        view = model.resample(tokens, plan)
    ids = [[5, 6, 7], [8]]
    maps = model.attention(view, views, ids, model.visual.shares(tokens, plan, 1))
    assert [tuple(m.shape) for m in maps] == [(3, 2, 36), (1, 1, 36)]
    for m in maps:
        assert m.min() >= 0
        total = m.sum((1, 2))
        assert ((total > 0.8) & (total < 1 + 1e-5)).all()
    again = model.write(view, views)[0]  # the fast attention is back
    assert again == model.write(view, views)[0]
    assert model.attention(view, views, [[], []], model.visual.shares(tokens, plan, 1))[0].shape == (0, 2, 36)


# --- sentences --------------------------------------------------------------------------------------------------------
def test_sentences():
    text = "No effusion. Nodule of 3.5 cm, stable!  Heart normal ... done"
    found = [text[a:b] for a, b in sentence_spans(text)]
    assert found == ["No effusion.", "Nodule of 3.5 cm, stable!", "Heart normal ...", "done"]
    found = [CHINESE[2][a:b] for a, b in sentence_spans(CHINESE[2])]
    assert found == ["右下肺见片状高密度影，考虑肺炎。", "未见气胸。"]
    assert sentence_spans(" . ") == [] and sentence_spans("") == []


@pytest.mark.parametrize(("kind", "texts"), [("word", ENGLISH), ("bpe", ENGLISH), ("character", CHINESE)])
def test_tokens_belong_to_sentences(kind, texts):
    tokenizer = train_tokenizer(texts * 2, kind, min_frequency=1, vocab_size=600, min_patients=1, digits=True)
    for text in texts:
        ids = tokenizer.encode(text)
        sentences, places = sentence_tokens(tokenizer, ids)
        assert [place for row in places for place in row] == list(range(len(ids)))
        assert [tokenizer.decode([ids[place] for place in row]).strip() for row in places] == sentences
        for most in range(1, len(sentences) + 2):
            cut = tokenizer.decode(first_sentences(tokenizer, ids, most))
            assert tokenizer.decode(ids).startswith(cut)
            assert sentence_tokens(tokenizer, first_sentences(tokenizer, ids, most))[0] == sentences[:most]
    assert sentence_tokens(tokenizer, []) == ([], [])


# --- folders ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decoder", ["transformer", "relational", "language-model", "lora"])
def test_saved_and_loaded(tokenizer, language_models, tmp_path, decoder):
    options = {"decoder": decoder, "pool": "attention"}
    if decoder in ("language-model", "lora"):
        options |= {"decoder": "language-model", "language_model": str(language_models["llama"])}
        options |= {"lora_rank": 2 * (decoder == "lora")}
    model = report_model(None if "language_model" in options else tokenizer, **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    folder = save_report_model(model, tmp_path / "run" / "model")
    loaded = load_report_model(tmp_path / "run", "cpu")
    assert not loaded.training and loaded.config == model.config
    targets, views = pad_targets([[5, 6, 7, 8], [9, 10]]), Views.of_counts([2, 1])
    tokens = view_tokens(model, 3)
    torch.testing.assert_close(loaded(targets, views, view_tokens=tokens), model(targets, views, view_tokens=tokens))
    assert loaded.write(tokens, views) == model.write(tokens, views)
    save_report_model(loaded, folder)  # over itself
    assert load_report_model(folder, "cpu").write(tokens, views) == model.write(tokens, views)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_folders_that_do_not_fit(tokenizer, language_models, tmp_path):
    folder = save_report_model(report_model(tokenizer), tmp_path / "model")
    other = train_tokenizer([*ENGLISH, "nodule and granuloma"], "word", min_frequency=1, min_patients=1, digits=True)
    settings = json.loads((folder / "report.json").read_text())
    whole = {name: (folder / name).read_bytes() for name in settings["parts"]}
    assert {"tokenizer/tokenizer.json", "visual.safetensors", "decoder/config.json"} <= set(whole)
    other.save(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="another model's; copy the whole folder"):
        load_report_model(folder)
    without = {name: value for name, value in settings.items() if name != "parts"}
    (folder / "report.json").write_text(json.dumps(without))
    with pytest.raises(CheckpointError, match="another model's tokenizer"):
        load_report_model(folder)
    (folder / "report.json").write_text(json.dumps(settings))
    for name, content in whole.items():
        (folder / name).unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=r"(is missing; copy the whole folder|another model's)"):
            load_report_model(folder)
        (folder / name).write_bytes(content)
    load_report_model(folder)
    for part in ("tokenizer", "decoder"):  # nothing is looked for on a hub in its place
        (folder / part).rename(tmp_path / part)
        with pytest.raises(CheckpointError, match=rf"model/{part}.*: is missing; copy the whole folder"):
            load_report_model(folder)
        (tmp_path / part).rename(folder / part)
    with pytest.raises(CheckpointError, match=r"report.json: is missing"):
        load_report_model(tmp_path / "elsewhere")
    (folder / "report.json").write_text(json.dumps({**settings, "format_version": 9}))
    with pytest.raises(CheckpointError, match="format_version 9"):
        load_report_model(folder)
    (folder / "report.json").write_text(json.dumps(settings))
    (folder / "decoder" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="decoder"):
        load_report_model(folder)
    with pytest.raises(CheckpointError, match="something else"):
        save_report_model(report_model(tokenizer), tmp_path)
    path = str(language_models["llama"])
    model = report_model(None, decoder="language-model", language_model=path)
    model.language_model_print = "of another"
    with pytest.raises(CheckpointError, match="another one than"):
        load_report_model(save_report_model(model, tmp_path / "third"))


def test_a_decoder_folder_is_one_of_transformers(tokenizer, transformers, tmp_path):
    model = report_model(tokenizer)
    folder = save_report_model(model, tmp_path / "model")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "decoder")
    for name, tensor in model.decoder.model.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decoder": "lstm"}, "decoder: got 'lstm'"),
        ({"language": "fr"}, "language: got 'fr'"),
        ({"heads": 5}, "divisor of width 32"),
        ({"decoder": "language-model"}, "language_model"),
        ({"lora_rank": 4}, "lora_rank"),
        ({"visual_tokens": 5}, "square numbers"),
        ({"visual_tokens": 49}, "make no 7 x 7; visual_tokens=36 and smaller square numbers fit"),
        ({"max_length": 1}, "max_length"),
    ],
)
def test_settings_that_cannot_be(tokenizer, options, match):
    with pytest.raises((ConfigError, ArgumentError), match=match):
        report_model(tokenizer, **options)


def test_reports_on_tensors(tokenizer):
    model = report_model(tokenizer, keep="contour")
    inside = torch.rand(3, 6, 6) < 0.5
    shown = images(3)
    texts = model.generate(shown, inside=inside)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    pairs = model.generate(shown, Views.of_counts([1, 2]), WritingOptions(num_beams=1), inside=inside)
    assert len(pairs) == 2
