import pytest

from moe_asr.data.features import FeatureConfig
from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError
from moe_asr.models.lengths import check_lengths, longest_piece

FEATURES = FeatureConfig(sample_rate=8000)


class Model:
    """Takes up to 100 frames and 3 tokens."""

    def too_long(self, feature_frames, num_tokens):
        if feature_frames > 100:
            return f"{feature_frames} frames"
        return f"{num_tokens} tokens" if num_tokens > 3 else None


class Letters:
    def encode(self, text):
        return list(text)


def utterance(name, frames, text="abc"):
    samples = FEATURES.window + FEATURES.shift * (frames - 1)
    return Utterance(name, f"{name}.wav", samples, 8000, text)


def test_the_first_utterance_that_is_too_long_is_named():
    check_lengths([utterance("a", 100)], Model(), FEATURES, Letters())
    with pytest.raises(UserError, match="^utterance b is too long: 101 frames; cut it, or leave it out$"):
        check_lengths([utterance("a", 100), utterance("b", 101), utterance("c", 200)], Model(), FEATURES, Letters())


def test_tokens_count_where_the_texts_are_given():
    long = utterance("a", 5, "abcd")
    check_lengths([long], Model(), FEATURES)
    with pytest.raises(UserError, match="utterance a is too long: 4 tokens"):
        check_lengths([long], Model(), FEATURES, Letters())


def test_slower_speech_is_longer():
    check_lengths([utterance("a", 92)], Model(), FEATURES)
    with pytest.raises(UserError, match="utterance a"):
        check_lengths([utterance("a", 92)], Model(), FEATURES, slowest=0.9)


def test_the_longest_piece_is_what_a_model_can_hear_and_write():
    seven = FEATURES.window + 699 * FEATURES.shift  # samples of 700 frames: 7.015 s

    class Listener:
        frames, tokens = 10**6, 10**6

        def too_long(self, frames, tokens):
            if tokens > self.tokens:
                return "too much to write"
            return "too many frames" if frames > self.frames else None

    model = Listener()
    assert longest_piece(model, FEATURES) == 20 and longest_piece(model, FEATURES, 33) == 33
    model.frames = 700
    assert seven / 8000 - 0.02 <= longest_piece(model, FEATURES) < (seven + FEATURES.shift) / 8000
    assert longest_piece(model, FEATURES, 7) == 7
    with pytest.raises(UserError, match="max_seconds 8 s are too long for this model: too many frames"):
        longest_piece(model, FEATURES, 8)
    model.tokens = 43
    assert longest_piece(model, FEATURES) == pytest.approx(4.3) and longest_piece(model, FEATURES, 7) == 7
    model.frames = 90
    with pytest.raises(UserError, match="hears less than a second at once: too many frames"):
        longest_piece(model, FEATURES)
    assert longest_piece(Listener(), FeatureConfig.whisper(pad_seconds=6)) == pytest.approx(6)
