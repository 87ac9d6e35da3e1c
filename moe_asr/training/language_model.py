"""A training run of a small language model on text alone.

`exp_dir` gets `config.yaml`, checkpoints and logs (see `Trainer`), and `final/`: a model folder of `transformers` with
its tokenizer.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from moe_asr.config import save_config
from moe_asr.data.plan import Share
from moe_asr.data.text_batches import Pair, TextBatch, TextDataConfig, TextLoader, read_pairs
from moe_asr.data.unit_tokens import END, build_tokenizer, save_tokenizer
from moe_asr.device import pick_device
from moe_asr.errors import UserError
from moe_asr.files import atomic_folder
from moe_asr.models.interface import Loss
from moe_asr.models.language_model import LanguageModel, LanguageModelConfig
from moe_asr.training.config import TrainConfig
from moe_asr.training.distributed import processes, rank, world_size
from moe_asr.training.loop import Trainer
from moe_asr.training.optimizer import trainable_parameters
from moe_asr.training.restart import run_folder, run_identity, start_trainer
from moe_asr.training.run_state import Progress
from moe_asr.training.update import LossSums

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class LanguageModelRunConfig:
    """Trains a small causal language model to write text for sequences of units, from text alone.

    Args:
        exp_dir: folder of the run; a run that was stopped there goes on
        data: training data; its targets and units also make the tokens
        valid: validation data
        prompt: what stands around the units, and later around the speech, whose place <speech> marks
        vocab_size: most characters that the model can write, the most frequent ones; 0 takes all
        model: size of the model
        like_units: whether a character's embedding begins near those of its units, as pairs with one unit for each
            character tell, and heads as a copier: that most of the text is a copy of what is read, unit by
            unit, is found within a few hundred updates so, and without only in many thousands
        guidance: weight in the loss of training of where these heads are to look, see `LanguageModel`
        train: the loop and its optimiser
        on_change: what to do with a run in exp_dir that had other settings or data: error, or restart, which throws it
            away
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one
    """

    exp_dir: str
    data: TextDataConfig
    valid: TextDataConfig
    prompt: str = "<speech>="
    vocab_size: int = 0
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    like_units: bool = False
    guidance: float = 0.0
    train: TrainConfig = field(default_factory=TrainConfig)
    on_change: Literal["error", "restart"] = "error"
    device: str = "auto"


def train_language_model(config: LanguageModelRunConfig) -> Progress:
    """Runs the whole of it. Returns how far it came.

    Raises:
        UserError: the configuration does not fit the data, see `TextLoader`, or see `Trainer`
    """
    with processes():
        return _train(config)


def _train(config: LanguageModelRunConfig) -> Progress:
    device = pick_device(config.device)
    pairs, valid_pairs = read_pairs(config.data.files), read_pairs(config.valid.files)
    units = {unit for pair in pairs for unit in pair.source}
    tokenizer = build_tokenizer((pair.target for pair in pairs), units, config.prompt, config.vocab_size)
    most = config.model.max_positions
    share = Share(rank(), world_size(), config.train.accumulate)
    loader = TextLoader(config.data, pairs, tokenizer, config.prompt, most, share)
    share = Share(rank(), world_size(), world_size())
    valid_loader = TextLoader(config.valid, valid_pairs, tokenizer, config.prompt, most, share)
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model, tokenizer.get_vocab_size(), tokenizer.token_to_id(END), config.guidance)
    if config.like_units:
        begin_like_units(model, pairs, tokenizer)
    model.to(device).train()
    with run_folder(config) as exp_dir:
        trainer = _make_trainer(config, model, tokenizer, loader, valid_loader)
        if rank() == 0:
            save_config(config, exp_dir / "config.yaml")
        trainer.train()
        if rank() == 0:
            with atomic_folder(exp_dir / "final") as folder:
                model.save(folder)
                save_tokenizer(tokenizer, folder)
    return trainer.progress


@torch.no_grad()
def begin_like_units(model: LanguageModel, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
    """Sets  e_c <- e_c / 2 + sum_u p(u | c) e_u  for each character c that has units u in pairs with as many units.

    The random half keeps apart what sounds alike. Then has three heads begin as a copier, see `begin_copying`.

    Raises:
        UserError: there is no such pair, or the model has a single layer or head
    """
    if min(model.lm.config.num_hidden_layers, model.lm.config.num_attention_heads) < 2:
        raise UserError("like_units needs two layers and two heads, or more")
    counts = Counter(
        both for pair in pairs if len(pair.source) == len(pair.target) for both in zip(pair.target, pair.source)
    )
    if not counts:
        raise UserError("like_units needs pairs with one unit for each character, and there is none")
    ids = tokenizer.get_vocab()
    rows = [(ids[character], ids[unit], count) for (character, unit), count in counts.items() if character in ids]
    characters, units, numbers = (torch.tensor(column) for column in zip(*rows))
    weight_VW = model.lm.get_input_embeddings().weight
    total_V = torch.zeros(len(weight_VW)).index_add_(0, characters, numbers.float())
    share = numbers / total_V[characters]
    mean_VW = torch.zeros_like(weight_VW).index_add_(0, characters, share[:, None] * weight_VW[units])
    known = total_V > 0
    weight_VW[known] = weight_VW[known] / 2 + mean_VW[known]
    model.begin_copying()


def _make_trainer(
    config: LanguageModelRunConfig,
    model: LanguageModel,
    tokenizer: Tokenizer,
    loader: TextLoader,
    valid_loader: TextLoader,
) -> Trainer:
    def forward(batch: TextBatch, generator: torch.Generator | None) -> Loss:
        return model(batch.tokens_NM, batch.next_NM, batch.look_NLM)

    def batches(epoch: int, start: int) -> TextLoader:
        loader.seek(epoch, start)
        return loader

    def start() -> Trainer:
        return Trainer(
            model,
            forward,
            batches,
            config.train,
            config.exp_dir,
            trainable=list(trainable_parameters(model)),
            valid_batches=lambda: valid_loader,
            identity=_identity(config, tokenizer),
            further=_perplexity,
        )

    return start_trainer(config, start)


def _perplexity(sums: LossSums) -> dict[str, float]:
    return {"perplexity": math.exp(min(sums.loss, 700.0))}


def _identity(config: LanguageModelRunConfig, tokenizer: Tokenizer) -> dict:
    files = [*config.data.files, *config.valid.files]
    files += [data.noise.confusions for data in (config.data, config.valid) if data.noise.confusions]
    token_set = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return {**run_identity(config, files), "token_set": token_set}
