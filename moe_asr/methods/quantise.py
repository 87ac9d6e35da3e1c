"""Model folders to 4 bits and back, with what that costs and gains."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from moe_asr.errors import UserError
from moe_asr.experts import Adapter
from moe_asr.files import folder_bytes
from moe_asr.methods.adapt import load_adapted
from moe_asr.models.folder import LoadedModel, load_model, save_model, tensor_bytes
from moe_asr.models.interface import Model, Recogniser
from moe_asr.models.speech_llm import SpeechLLM
from moe_asr.models.time_conv import real_mask
from moe_asr.quant import QuantConfig, bits_per_weight, dequantise, matching_layers, quantise

_LM_LAYERS = r"lm\.layers\..*"


@dataclass(frozen=True)
class QuantiseConfig:
    """Writes a model folder with weights in 4 bits, and measures what became smaller and how much the output changed.

    Or the other way: exports a model with 4-bit weights as a plain one, with experts merged in if there are any.

    Args:
        model: model folder to read
        out_dir: model folder to write
        quantisation: which weights, and how; for a speech_llm [default] takes the layers of the language model alone
        dequantise: the other way
        adaptation: on the way back, adaptation folder of this model, whose experts are merged in under fixed weights
        weights: one for each of these experts; a single one needs none
    """

    model: str
    out_dir: str
    quantisation: QuantConfig = field(default_factory=QuantConfig)
    dequantise: bool = False
    adaptation: Optional[str] = None
    weights: Optional[tuple[float, ...]] = None


def quantise_folder(config: QuantiseConfig) -> None:
    """Runs the command.

    Raises:
        UserError: the model is quantised already, or on the way back is not; see also `load_model` and `quantise`
    """
    if Path(config.out_dir).resolve() == Path(config.model).resolve():
        raise UserError(f"out_dir is the model itself: give another folder than {config.model}")
    if config.adaptation is not None and not config.dequantise:
        raise UserError("adaptation is for dequantise: train experts on the quantised model instead of quantising them")
    if config.weights is not None and config.adaptation is None:
        raise UserError("weights are of experts: give their adaptation too, or leave weights out")
    loaded = load_model(config.model)
    if (loaded.config.quantisation is not None) != config.dequantise:
        raise UserError(
            f"{config.model} is not quantised: there is nothing to dequantise" if config.dequantise else
            f"{config.model} is quantised already: take the model that it was made from"
        )  # fmt: skip
    (_export if config.dequantise else _quantise)(config, loaded)


def _quantise(config: QuantiseConfig, loaded: LoadedModel) -> None:
    model, noise, quantisation = loaded.model, _noise(loaded), _chosen(config.quantisation, loaded.model)
    for name in matching_layers(model, quantisation.targets):
        if model.frozen_parts and not name.startswith(model.frozen_parts):
            raise UserError(f"quantisation: {name} is for training and stays as it is: leave it out of the targets")
    expected, state = _outputs(model, noise), dict(model.state_dict())
    names = quantise(model, quantisation)
    squares = [_squares(state[f"{name}.weight"] - model.get_submodule(name).weight) for name in names]
    error = (sum(squares) / sum(_squares(state[f"{name}.weight"]) for name in names)).sqrt()
    bits = "32 (simulated)" if quantisation.simulate else f"{bits_per_weight(model):.3f}"
    save_model(config.out_dir, model, replace(loaded.config, quantisation=quantisation), loaded.tokens)
    print(f"{config.out_dir}: {len(names)} layers in {bits} bits per weight, {error:.1%} off (root mean square)")
    small, large = stored_bytes(config.out_dir, names), stored_bytes(config.model, names)
    folders = folder_bytes(config.out_dir), folder_bytes(config.model)
    print(f"weights of these layers on disk: {_sizes(small, large)}; the whole folder: {_sizes(*folders)}")
    _print_change(expected, _outputs(load_model(config.out_dir).model, noise))


def _export(config: QuantiseConfig, loaded: LoadedModel) -> None:
    model, noise, adapter, weights = loaded.model, _noise(loaded), None, config.weights or (1.0,)
    if config.adaptation is not None:
        if not isinstance(model, Recogniser):
            raise UserError(f"{config.model} is no recogniser and has no adaptations; leave adaptation out")
        adapter = load_adapted(model, config.adaptation).adapter
    expected = _outputs(model, noise, adapter, weights)
    dequantise(model)
    plain = model if adapter is None else adapter.merged(weights)
    save_model(config.out_dir, plain, replace(loaded.config, quantisation=None), loaded.tokens)
    experts = "" if adapter is None else f", experts of {config.adaptation} merged in"
    print(f"{config.out_dir}: plain layers with the values of the 4-bit ones{experts}")
    print(f"the whole folder: {folder_bytes(config.out_dir):,} bytes, {folder_bytes(config.model):,} before")
    _print_change(expected, _outputs(load_model(config.out_dir).model, noise))


def stored_bytes(folder: str | Path, layers: Iterable[str]) -> int:
    """Bytes that the weights of these layers take in a model folder, packed or plain."""
    own = set(layers)
    sizes = {tuple(name.rsplit(".", 1)): size for name, size in tensor_bytes(folder).items()}
    return sum(size for (layer, part), size in sizes.items() if layer in own and part != "bias")


def _chosen(quantisation: QuantConfig, model: Model) -> QuantConfig:
    """What `default` means for a model of which one part stays as it is."""
    if not isinstance(model, SpeechLLM):
        return quantisation
    targets = tuple(_LM_LAYERS if target == "default" else target for target in quantisation.targets)
    return replace(quantisation, targets=targets)


def _squares(weight: Tensor) -> Tensor:
    return weight.float().square().sum()


def _noise(loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Two utterances of white noise, as features and their lengths: 200 frames or 2 s of samples, and two thirds."""
    features = loaded.config.features
    frames = 2 * features.sample_rate if features.kind == "waveform" else 200
    features_NTF = torch.randn(2, frames, features.num_mels, generator=torch.Generator().manual_seed(0))
    return features_NTF, torch.tensor([frames, frames * 13 // 20])


@torch.no_grad()
def _outputs(
    model: Model, noise: tuple[Tensor, Tensor], adapter: Adapter | None = None, weights: tuple[float, ...] = ()
) -> Tensor:
    """States of the encoder, or of the language model where there is one, after speech and prompt.

    With an adapter each utterance has the domains `weights`.
    """
    route = nullcontext()
    if adapter is not None:
        route = adapter.route(torch.tensor([weights] * 2), model.stream_lengths(noise[1]))
    with route:
        if not isinstance(model, SpeechLLM):
            return model.encode(*noise)[0]
        after_NP = torch.tensor(model.config.after).expand(2, -1)
        inputs_NMW, lengths_N = model.prefix(*model.speech(*noise), after_NP)
        hidden_NMW = model.lm(inputs_embeds=inputs_NMW, use_cache=False).last_hidden_state.float()
        return hidden_NMW * real_mask(lengths_N, hidden_NMW.shape[1])[..., None]


def _print_change(before: Tensor, after: Tensor) -> None:
    change = after - before
    relative, largest = change.norm() / before.norm(), change.abs().max()
    print(f"states of noise change by {relative:.2g} relative, at most {largest:.2g} absolute")


def _sizes(small: int, large: int) -> str:
    return f"{small:,} bytes, before {large:,}: {large / small:.2f} times smaller"
