import pytest
import torch
import torch.nn.functional as F
from test_time_conv import naive

from moe_asr.errors import UserError
from moe_asr.models.projector import Projector, ProjectorConfig


@pytest.mark.parametrize("hidden, stride", [(0, 4), (6, 2), (5, 1)])
@torch.no_grad()
def test_each_utterance_of_a_padded_batch_equals_loops_over_it_alone(make_batch, hidden, stride):
    torch.manual_seed(0)
    projector = Projector(ProjectorConfig(hidden, 9, stride), width=8, lm_width=10).double()
    torch.nn.init.normal_(projector.norm.weight)
    states, lengths, utterances = make_batch([1, 4, 5, 8, 11], mels=8, longer=3)
    speech, frames = projector(states.double(), lengths)
    assert speech.shape == (5, -(-14 // stride), 10)
    for y_LW, length, x_TD in zip(speech, frames, utterances):
        hidden_TC = naive(projector.conv2, F.gelu(naive(projector.conv1, x_TD.double())))
        wanted = projector.norm(projector.linear2(projector.linear1(hidden_TC).clamp(min=0)))
        assert length == len(wanted) == -(-len(x_TD) // stride)
        torch.testing.assert_close(y_LW[:length], wanted)
        assert not y_LW[length:].any()


def test_a_contradictory_size_is_refused():
    with pytest.raises(UserError, match="ffn and stride must be at least 1"):
        ProjectorConfig(stride=0)
