import pytest

from moe_asr.config import from_plain, to_plain
from moe_asr.errors import UserError
from moe_asr.models.build import ModelConfig, build_model, complete_config
from moe_asr.models.conformer_ctc import ConformerCTC, ConformerCTCConfig
from moe_asr.models.domain_classifier import DomainClassifier, DomainClassifierConfig
from moe_asr.models.encoders import EncoderConfig


@pytest.fixture
def recogniser(tiny):
    return ModelConfig(conformer_ctc=ConformerCTCConfig(tiny))


@pytest.fixture
def classifier(tiny):
    return ModelConfig(domain_classifier=DomainClassifierConfig(EncoderConfig(tiny)))


def test_builds_what_is_set_once_the_data_have_completed_it(recogniser, classifier):
    model = build_model(complete_config(recogniser, num_mels=7, vocab_size=11))
    assert isinstance(model, ConformerCTC) and model.head.out_features == 11
    model = build_model(complete_config(classifier, num_mels=7, vocab_size=0, domains=["a", "b"]))
    assert isinstance(model, DomainClassifier) and model.domains == ("a", "b")


def test_complete_configuration_stays_and_survives_plain_form(recogniser, classifier):
    for config in (
        complete_config(recogniser, 7, 11),
        complete_config(classifier, 7, 0, ["a", "b"]),
    ):
        assert from_plain(ModelConfig, to_plain(config)) == config
        assert complete_config(config, 7, 11) == config


def test_none_or_two_are_refused(recogniser, classifier):
    both = ModelConfig(recogniser.conformer_ctc, domain_classifier=classifier.domain_classifier)
    with pytest.raises(UserError, match="not none"):
        build_model(ModelConfig())
    with pytest.raises(UserError, match="not conformer_ctc and domain_classifier"):
        build_model(both)


def test_contradictions_of_the_data_are_refused(recogniser, classifier):
    with pytest.raises(UserError, match="mels is 7, but the features have 80"):
        complete_config(recogniser, 80, 11)
    with pytest.raises(UserError, match="vocab_size is 11, but the token set has 12"):
        complete_config(complete_config(recogniser, 7, 11), 7, 12)
    with pytest.raises(UserError, match="domains are a, b, but those of the data a, c"):
        complete_config(complete_config(classifier, 7, 0, ["a", "b"]), 7, 0, ["a", "c"])
