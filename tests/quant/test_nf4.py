import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.quant.nf4 import (
    NF4_LEVELS,
    dequantise_absmax,
    dequantise_nf4,
    pick_nf4,
    quantise_absmax,
    quantise_nf4,
)

LEVELS = torch.tensor(NF4_LEVELS)


def by_hand(weight, block):
    """Level by level: what each number becomes, and the absmax of each block."""
    values, absmax = weight.flatten().tolist(), []
    levels = LEVELS.double().tolist()
    for start in range(0, len(values), block):
        most = max(abs(v) for v in values[start : start + block])
        absmax.append(most)
        for i in range(start, min(start + block, len(values))):
            values[i] = most * min(levels, key=lambda level: abs(values[i] - most * level))
    return torch.tensor(values).view(weight.shape), torch.tensor(absmax)


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra [dev])").functional


SHAPES = [(64,), (1280, 64), (12, 7), (3, 5, 3), (65,), (1,), (63, 1), (7, 64, 3), (5, 66), (144, 1, 15)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [2, 32, 64, 100])
def test_every_number_becomes_the_nearest_level_of_its_block(shape, block):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, absmax = quantise_nf4(weight, block)
    expected, expected_absmax = by_hand(weight, block)
    assert codes.dtype == torch.uint8 and codes.shape == ((weight.numel() + 1) // 2,)
    assert torch.equal(absmax, expected_absmax)
    torch.testing.assert_close(dequantise_nf4(codes, absmax, shape, block), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [32, 64, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_bitsandbytes_bit_for_bit(bnb, shape, block, dtype):
    for seed in range(5):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        codes, absmax = quantise_nf4(weight, block)
        theirs, state = bnb.quantize_4bit(weight, blocksize=block, quant_type="nf4")
        assert torch.equal(codes, theirs.flatten()) and torch.equal(absmax, state.absmax)
        if shape[-1] % 2 == 0 and block <= 64:  # otherwise it compiles code for seconds, or errs in blocks of many rows
            expected = bnb.dequantize_4bit(theirs, state).view(shape)
            assert torch.equal(dequantise_nf4(codes, absmax, shape, block).to(dtype), expected)


def test_equals_bitsandbytes_where_it_is_close(bnb):
    """Numbers on, just above and just below the middle of two levels; zeros, tiny and huge blocks, all with tails."""
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2
    steps = [middles, middles.nextafter(torch.tensor(2.0)), middles.nextafter(torch.tensor(-2.0)), torch.ones(1)]
    for scale in (0.0, 1.0, 0.3, 7.7, 1e-30, 1e-39, 1e30):
        for extra in (0, 1, 2, 45):
            weight = scale * torch.cat([*steps, torch.zeros(64 * 2 - 46), *steps[::-1], torch.zeros(extra)])
            codes, absmax = quantise_nf4(weight, 64)
            theirs, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
            assert torch.equal(codes, theirs.flatten()) and torch.equal(absmax, state.absmax)


def test_high_four_bits_come_first_and_the_last_byte_is_filled_with_zero():
    codes, absmax = quantise_nf4(torch.tensor([-2.0, 2.0, 0.0]), 64)
    assert codes.tolist() == [0x0F, 0x77] and absmax.tolist() == [2.0]


def test_zeros_stay_zeros():
    codes, absmax = quantise_nf4(torch.zeros(130), 64)
    assert torch.equal(dequantise_nf4(codes, absmax, (130,), 64), torch.zeros(130))


@given(st.integers(1, 300), st.sampled_from([2, 6, 64]), st.integers(0, 2**31))
def test_quantising_again_changes_nothing(size, block, seed):
    weight = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    codes, absmax = quantise_nf4(weight, block)
    again = quantise_nf4(dequantise_nf4(codes, absmax, (size,), block), block)
    assert torch.equal(again[0], codes) and torch.equal(again[1], absmax)


@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_picked_numbers_are_those_of_the_whole(block, dtype):
    weight = torch.randn(11, 13)
    codes, absmax = quantise_nf4(weight, block)
    whole = dequantise_nf4(codes, absmax.to(dtype), (143,), block)
    positions = torch.randint(143, (4, 30))
    picked = pick_nf4(codes, absmax.to(dtype), positions, block)
    assert picked.dtype == dtype and torch.equal(picked, whole[positions])


@pytest.mark.parametrize("count", [1, 255, 256, 1000])
def test_absmax_in_8_bits_is_the_nearest_code(count):
    absmax = torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.1
    codes, scale, offset = quantise_absmax(absmax)
    assert codes.dtype == torch.uint8 and codes.shape == (count,) and scale.shape == (-(-count // 256),)
    back = dequantise_absmax(codes, scale, offset)
    every = dequantise_absmax(torch.arange(256, dtype=torch.uint8), torch.ones(1), torch.zeros(()))
    for i in range(count):
        distance = (every * scale[i // 256] + offset - absmax[i]).abs()
        assert (back[i] - absmax[i]).abs() <= distance.min() + 1e-7


def test_absmax_in_8_bits_against_bitsandbytes(bnb):
    """Offset and scales are equal. Its search for codes on a CPU is approximate: where they differ, ours are nearer."""
    every = dequantise_absmax(torch.arange(256, dtype=torch.uint8), torch.ones(1), torch.zeros(()))
    assert torch.equal(every, bnb.create_dynamic_map())
    weight = torch.randn(64 * 3000, generator=torch.Generator().manual_seed(0))
    _, absmax = quantise_nf4(weight, 64)
    codes, scale, offset = quantise_absmax(absmax)
    _, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    assert torch.equal(scale, state.state2.absmax) and torch.equal(offset, state.offset)
    differ = codes != state.absmax
    assert differ.float().mean() < 0.01
    theirs = dequantise_absmax(state.absmax, scale, offset)
    ours = dequantise_absmax(codes, scale, offset)
    assert ((ours - absmax).abs() < (theirs - absmax).abs())[differ].all()
