"""Models that know several languages: their prompts, how they learn and tell which one they hear."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig, build_model, complete_config
from moe_asr.models.conformer_aed import ConformerAEDConfig
from moe_asr.models.transformer_decoder import DecoderConfig
from moe_asr.models.whisper import WhisperConfig

V, LANGUAGES = 13, {"de": 3, "zh": 4, "fa": 5}
TOKENS = [[6, 7, 7, 8], [9], [7, 10, 8]]
KINDS = pytest.mark.parametrize("kind", ["conformer_aed", "whisper"])


def make(kind, tiny, languages=LANGUAGES, **changes):
    torch.manual_seed(0)
    if kind == "conformer_aed":
        decoder = DecoderConfig(layers=2, heads=2, ffn=20, dropout=0.0, max_tokens=30)
        config = ModelConfig(conformer_aed=ConformerAEDConfig(tiny, decoder, **changes))
    else:
        config = WhisperConfig(
            mels=7, width=12, encoder_layers=2, decoder_layers=2, heads=2, ffn=20, max_frames=60, max_tokens=30,
            **changes,
        )  # fmt: skip
        config = ModelConfig(whisper=config)
    return build_model(complete_config(config, 7, V, languages=languages))


def targets(make_targets, languages, tokens=TOKENS):
    batch = make_targets(tokens)
    batch.languages = languages
    return batch


@KINDS
def test_the_prompt_names_the_language_of_each_utterance(kind, tiny, make_targets):
    model = make(kind, tiny)
    assert model.prompts(targets(make_targets, ["zh-CN", "de", "fa"])).tolist() == [[2, 4], [2, 3], [2, 5]]
    assert set(LANGUAGES.values()) <= set(model.suppress)
    with pytest.raises(UserError, match="the model has no token for language 'eo'; it knows de, zh, fa"):
        model.prompts(targets(make_targets, ["zh", "eo", "fa"]))


@KINDS
def test_without_languages_labels_do_not_matter(kind, tiny, make_targets):
    model = make(kind, tiny, languages={})
    assert model.prompts(targets(make_targets, ["zh", "eo", ""])).tolist() == [[2]] * 3 and model.languages == {}


@KINDS
def test_a_batch_of_several_languages_is_as_each_alone(kind, tiny, make_batch, make_targets):
    model, languages = make(kind, tiny, ctc_weight=0.0, language_weight=0.7), ["zh", "de", "fa"]
    features, lengths, utterances = make_batch([40, 33, 57], longer=9)
    together = model.train()(features, lengths, targets(make_targets, languages))
    alone = [
        model(x[None], torch.tensor([len(x)]), targets(make_targets, [language], [tokens]))
        for x, language, tokens in zip(utterances, languages, TOKENS)
    ]
    torch.testing.assert_close(together.total, sum(loss.total for loss in alone), rtol=1e-5, atol=1e-5)
    right = [int(loss.parts["language"] > 0) for loss in alone]
    torch.testing.assert_close(together.parts["language"] / together.count, torch.tensor(sum(right) / 3))


@KINDS
def test_the_loss_of_languages_is_the_naive_one(kind, tiny, make_batch, make_targets):
    features, lengths, utterances = make_batch([40, 33, 57])
    batch = targets(make_targets, ["fa", "de", "zh"])
    plain = make(kind, tiny, ctc_weight=0.0, label_smoothing=0.0)
    model = make(kind, tiny, ctc_weight=0.0, label_smoothing=0.0, language_weight=0.7)
    expected = plain(features, lengths, batch).total
    for x, language in zip(utterances, ["fa", "de", "zh"]):
        states, length = model.encode(x[None], torch.tensor([len(x)]))
        logits = model.decoder.logits(model.decoder(torch.tensor([[2]]), states, length)[0, 0])
        row = torch.stack([logits[token] for token in LANGUAGES.values()])
        expected = expected + 0.7 * F.cross_entropy(row, torch.tensor(list(LANGUAGES).index(language)))
    torch.testing.assert_close(model(features, lengths, batch).total, expected, rtol=1e-5, atol=1e-5)


@KINDS
def test_it_tells_a_language_by_what_it_expects_in_its_place(kind, tiny, make_batch):
    model = make(kind, tiny).eval()
    features, lengths, utterances = make_batch([40, 33, 57], longer=5)
    posteriors_NL = model.language_posteriors(*model.encode(features, lengths))
    for x, posterior_L in zip(utterances, posteriors_NL):
        states, length = model.encode(x[None], torch.tensor([len(x)]))
        logits = model.decoder.logits(model.decoder(torch.tensor([[2]]), states, length)[0, -1])
        torch.testing.assert_close(posterior_L, logits[list(LANGUAGES.values())].softmax(0))


def test_a_model_learns_to_tell_two_languages(tiny, make_batch, make_targets):
    model = make("whisper", tiny, languages={"de": 3, "zh": 4}, language_weight=1.0)
    features, lengths, _ = make_batch([40, 33, 57, 50])
    features[::2] += 2.0
    batch = targets(make_targets, ["de", "zh", "de", "zh"], [[6], [6], [6], [6]])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(features, lengths, batch)
        loss.total.backward()
        optimizer.step()
    assert float(loss.parts["language"] / loss.count) == 1.0
    told = model.eval().language_posteriors(*model.encode(features, lengths)).argmax(1)
    assert told.tolist() == [0, 1, 0, 1]


def test_what_contradicts_itself_is_refused(tiny):
    with pytest.raises(UserError, match="language_weight is 1.0: it must not be negative, and 0 without languages"):
        make("conformer_aed", tiny, languages={}, language_weight=1.0)
    config = WhisperConfig(vocab_size=V, languages={"de": 3}, prompt=(2,))
    with pytest.raises(UserError, match="the second token of the prompt must be that of a language"):
        build_model(ModelConfig(whisper=config))
    with pytest.raises(UserError, match="languages names token 99, but there are 0 to 12"):
        build_model(ModelConfig(whisper=replace(config, languages={"de": 3, "fa": 99}, prompt=(2, 3))))
