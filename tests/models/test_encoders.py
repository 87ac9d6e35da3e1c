import pytest
import torch

from moe_asr.errors import UserError
from moe_asr.models.conformer import ConformerConfig, ConformerEncoder
from moe_asr.models.encoders import EncoderConfig, build_encoder
from moe_asr.models.whisper import WhisperEncoder, WhisperEncoderConfig

SMALL = {
    "conformer": (ConformerConfig(mels=7, width=12, layers=1, heads=2, kernel=5), ConformerEncoder),
    "whisper": (WhisperEncoderConfig(mels=7, width=12, layers=1, heads=2, ffn=16, max_frames=30), WhisperEncoder),
}


@pytest.mark.parametrize("kind", SMALL)
def test_an_encoder_says_how_wide_and_how_long_its_states_are(kind):
    part, cls = SMALL[kind]
    config = EncoderConfig(**{kind: part})
    encoder = build_encoder(config)
    assert isinstance(encoder, cls) and (config.kind, config.mels) == (kind, 7)
    lengths = torch.tensor([31, 20])
    states, frames = encoder(torch.randn(2, 31, 7), lengths)
    assert states.shape == (2, int(frames.max()), encoder.width)
    assert frames.tolist() == encoder.output_lengths(lengths).tolist()


@pytest.mark.parametrize("kind", SMALL)
def test_one_that_stays_as_it_is_has_no_dropout(kind):
    part, _ = SMALL[kind]
    config = EncoderConfig(**{kind: type(part)(**{**vars(part), "dropout": 0.5})})
    torch.manual_seed(0)
    encoder = build_encoder(config.without_dropout()).train()
    x, lengths = torch.randn(1, 20, 7), torch.tensor([20])
    torch.testing.assert_close(encoder(x, lengths)[0], encoder(x, lengths)[0], rtol=0, atol=0)
    assert not torch.equal(*(build_encoder(config).train()(x, lengths)[0] for _ in range(2)))


def test_exactly_one_kind_is_set():
    with pytest.raises(UserError, match="set exactly one of conformer, whisper, pretrained, not none"):
        EncoderConfig()
    with pytest.raises(UserError, match="not conformer and whisper"):
        EncoderConfig(conformer=SMALL["conformer"][0], whisper=SMALL["whisper"][0])


def test_only_whisper_can_hear_too_much():
    whisper, conformer = (build_encoder(EncoderConfig(**{kind: SMALL[kind][0]})) for kind in ("whisper", "conformer"))
    assert whisper.too_long(60) is None and "hears 0.6 s" in whisper.too_long(61)
    assert conformer.too_long(10**6) is None
