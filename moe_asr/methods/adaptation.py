"""A frozen recogniser with experts on it, and the domain classifier that tells them where an utterance comes from.

Shapes: N utterances, T frames, F mel bins, E experts.
"""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal, Optional

import torch
from torch import Tensor, nn

from moe_asr.config import save_config
from moe_asr.data.batches import Batch
from moe_asr.data.features import log_mel
from moe_asr.errors import UserError
from moe_asr.experts import (
    Adapter,
    ExpertSpec,
    Routing,
    RoutingStatistics,
    save_adapter,
)
from moe_asr.files import atomic_folder
from moe_asr.methods.hdmole import entropy_fallback
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.folder import LoadedModel, save_model
from moe_asr.models.interface import Loss, Recogniser
from moe_asr.models.time_conv import real_mask

Route = Literal["posterior", "label", "uniform"]


@dataclass(frozen=True)
class AdaptationConfig:
    """Experts on a frozen recogniser.

    Args:
        experts: which layers get how many experts of which rank, and how they are weighed; targets [default] are those
            that the model recommends
        saml: SAML's experts and routers instead
        domains: domains of the utterances, in order; empty takes the classes of the classifier
        base_domain: the domain that the frozen model serves alone: it has no expert, its probability fades the others
        global_route: where the domain of an utterance comes from: posterior (of the classifier), label or uniform
        domain_classifier: model folder of the classifier; needed for posterior
        domain_key: the label of utterances that names their domain; filled in from the training data
        initial_experts: adaptation folders of single LoRAs of the same targets and rank, one for each expert in their
            order, to start from instead of from zero
    """

    experts: Optional[ExpertSpec] = None
    saml: Optional[SamlConfig] = None
    domains: tuple[str, ...] = ()
    base_domain: Optional[str] = None
    global_route: Route = "posterior"
    domain_classifier: Optional[str] = None
    domain_key: Literal["accent", "speaker", "language"] = "accent"
    initial_experts: tuple[str, ...] = ()


class AdaptedRecogniser(nn.Module):
    """Fills the routing of its experts for each batch; otherwise the recogniser itself.

    Only the experts train: recogniser and classifier are frozen, and the classifier stays in evaluation mode.

    Args:
        recogniser: with `adapter` attached
        classifier: gives the posteriors; None where the routers need none
        members: where `adapter` is a stack, the labels whose utterances its members serve, in their order
        member_key: the field of a batch that these labels are in
    """

    def __init__(
        self,
        recogniser: Recogniser,
        adapter: Adapter,
        config: AdaptationConfig,
        classifier: Optional[LoadedModel] = None,
        members: tuple[str, ...] = (),
        member_key: str = "speaker",
    ) -> None:
        super().__init__()
        self.members, self.member_key = members, member_key
        self.recogniser, self.adapter, self.config = recogniser, adapter, config
        self.classifier_folder = classifier
        self.classifier = classifier.model.requires_grad_(False).eval() if classifier else None
        self.statistics = RoutingStatistics(config.domains)
        if adapter.needs_memory:
            recogniser.encoder.register_forward_hook(self._remember)

    def train(self, mode: bool = True) -> AdaptedRecogniser:
        super().train(mode)
        if self.classifier is not None:
            self.classifier.eval()
        return self

    def forward(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch) -> Loss:
        """The recogniser's loss, plus load balancing where the routers ask for it."""
        with self.route(batch, feature_lengths_N, with_texts=True) as routing:
            loss = self.recogniser(features_NTF, feature_lengths_N, batch)
            if not routing.balance:
                return loss
            balance = routing.balance_loss() * loss.count
        parts = {**loss.parts, "balance": balance.detach()}
        return dataclasses.replace(loss, total=loss.total + balance, parts=parts)

    @property
    def needs_whole_prefix(self) -> bool:
        """Whether a decoder has to run on all tokens so far at each step, for routers of its own layers."""
        text = self.recogniser.text_streams
        return any(spec.router.needs_whole_prefix and spec.stream in text for spec in self.adapter.specs)

    @contextmanager
    def route(
        self,
        batch: Batch,
        feature_lengths_N: Tensor,
        global_route: Optional[Route] = None,
        fallback: float = 0.0,
        with_texts: bool = False,
    ) -> Iterator[Routing]:
        """Inside, the recogniser sees this batch's routing.

        Args:
            global_route: instead of the configured one
            fallback: strength of the fallback to the base model where the domain is uncertain, see `entropy_fallback`
            with_texts: whether the model is given the texts of the batch, as in training
        """
        self.domain_source(global_route, fallback)
        domains, scale = self.domain_weights(batch, global_route), None
        if domains is not None:
            scale = entropy_fallback(domains, fallback) if fallback else None
            domains, scale = self._leave_to_base(domains, scale)
        lengths = self.recogniser.stream_lengths(feature_lengths_N, batch if with_texts else None)
        statistics = None if self.training else self.statistics
        members_N = self._members_of(batch)
        with self.adapter.route(domains, lengths, scale, statistics, batch.domains_N, members_N) as routing:
            yield routing

    def domain_source(self, global_route: Optional[Route] = None, fallback: float = 0.0) -> Optional[Route]:
        """Where the domains come from whatever the batch; None where a choice of experts does not depend on them.

        Raises:
            UserError: global_route or fallback is not for these experts, or the route needs a classifier
        """
        if global_route is not None and not self._sees_domains:
            raise UserError("global_route is for experts whose routers see the domain; leave it out")
        if not self._sees_domains or self.adapter.num_experts == 1:
            if fallback:
                raise UserError("fallback is for experts whose routers see the domain; leave it out")
            return None
        source = global_route or self.config.global_route
        if source == "posterior" and self.classifier is None:
            raise UserError("global_route posterior needs a domain_classifier; give its model folder")
        return source

    def domain_weights(self, batch: Batch, global_route: Optional[Route] = None) -> Optional[Tensor]:
        """(N, G) probability of each of G domains, (N, 1) ones for a single expert; None where no router asks for it.

        Raises:
            UserError: the batch does not have labels that the route needs; see also `domain_source`
        """
        source, G, device = self.domain_source(global_route), len(self.config.domains), batch.audio_NS.device
        if source is None:
            return torch.ones(len(batch), 1, device=device) if self._sees_domains else None
        if source == "uniform":
            return torch.full((len(batch), G), 1 / G, device=device)
        if source == "label":
            if int(batch.domains_N.min()) < 0:
                name = batch.ids[int(batch.domains_N.argmin())]
                raise UserError(
                    f"utterance {name} has none of the domains {', '.join(self.config.domains)}: label it, or use "
                    "global_route posterior or uniform"
                )
            return nn.functional.one_hot(batch.domains_N, G).float()
        with torch.no_grad():
            features = log_mel(batch.audio_NS, batch.audio_lengths_N, self.classifier_folder.config.features)
            return self.classifier.posteriors(*features)

    @property
    def _sees_domains(self) -> bool:
        return any(spec.router.needs_domains for spec in self.adapter.specs)

    def _members_of(self, batch: Batch) -> Optional[Tensor]:
        if not self.members:
            return None
        labels = getattr(batch, f"{self.member_key}s")
        unknown = sorted(set(labels) - set(self.members))
        if unknown:
            raise UserError(f"there is no adaptation for {self.member_key} {', '.join(map(repr, unknown))}")
        return torch.tensor([self.members.index(label) for label in labels], device=batch.audio_NS.device)

    def _remember(self, encoder: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        """A forward hook of the encoder: routers of the decoder look at its states."""
        states_NTD, lengths_N = output
        self.adapter.routing.memory = states_NTD, real_mask(lengths_N, states_NTD.shape[1])

    def _leave_to_base(self, domains_NG: Tensor, scale_N: Optional[Tensor]) -> tuple[Tensor, Optional[Tensor]]:
        """Probabilities of the domains that have experts, and the experts' scale `1 - p(base domain)`."""
        if self.config.base_domain is None or self.adapter.num_experts == 1:
            return domains_NG, scale_N
        index = self.config.domains.index(self.config.base_domain)
        rest_NE = torch.cat([domains_NG[:, :index], domains_NG[:, index + 1 :]], dim=1)
        total_N1 = rest_NE.sum(1, keepdim=True)
        E = rest_NE.shape[1]
        weights_NE = torch.where(total_N1 > 0, rest_NE / total_N1.clamp_min(1e-30), 1 / E)
        return weights_NE, total_N1[:, 0] * (1 if scale_N is None else scale_N)

    def save(self, folder: str | Path, about: Optional[dict] = None, base: Optional[str] = None) -> None:
        """Writes everything but the recogniser: `adapter/`, `domain_classifier/` and `adaptation.yaml`, atomically.

        Args:
            about, base: see `save_adapter`
        """
        with atomic_folder(folder) as new:
            save_adapter(self.adapter, new / "adapter", about, base)
            if self.classifier is not None:
                save_model(new / "domain_classifier", self.classifier, self.classifier_folder.config)
            save_config(dataclasses.replace(self.config, domain_classifier=None), new / "adaptation.yaml")
