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
from moe_asr.methods.routes import (
    Route,
    RouteOptions,
    check_beta,
    label_weights,
    language_columns,
    over_domains,
)
from moe_asr.methods.saml import SamlConfig
from moe_asr.models.folder import LoadedModel, save_model
from moe_asr.models.interface import Criterion, Loss, Predictions, Recogniser
from moe_asr.models.time_conv import real_mask


@dataclass(frozen=True)
class AdaptationConfig:
    """Experts on a frozen recogniser.

    Args:
        experts: which layers get how many experts of which rank, and how they are weighed; targets [default] are those
            that the model recommends
        saml: SAML's experts and routers instead
        domains: domains of the utterances, in order; empty takes the classes of the classifier
        base_domain: the domain that the frozen model serves alone: it has no expert, its probability fades the others
        global_route: where the domain of an utterance comes from: posterior (of the classifier), label, uniform, model
            or router, see `moe_asr.methods.routes`
        beta: weight of the true domain, where it comes from the label
        router_weight: weight of the cross-entropy of domains by which the router of the whole model is trained
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
    beta: float = 1.0
    router_weight: float = 1.0
    domain_classifier: Optional[str] = None
    domain_key: Literal["accent", "speaker", "language"] = "accent"
    initial_experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.router_weight < 0:
            raise UserError(f"router_weight must not be negative, but is {self.router_weight}")


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
        self.domain_router = adapter.domain_router
        self.statistics = RoutingStatistics(config.domains)
        if adapter.needs_memory:
            recogniser.encoder.register_forward_hook(self._remember)

    def train(self, mode: bool = True) -> AdaptedRecogniser:
        super().train(mode)
        if self.classifier is not None:
            self.classifier.eval()
        return self

    def forward(
        self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch, criterion: Optional[Criterion] = None
    ) -> Loss:
        """The recogniser's loss, plus what routers ask for: load balancing, and the cross-entropy of the domains.

        The latter is the mean over utterances times the loss's count; parts `domain` and `domain_accuracy` likewise.

        Args:
            criterion: in the place of the recogniser's cross-entropy, see `Recogniser.predictions`
        """
        domains_NG = self.domain_weights(batch, features_NTF, feature_lengths_N)
        with self.route(batch, feature_lengths_N, domains_NG, with_texts=True) as routing:
            options = {} if criterion is None else {"criterion": criterion}
            loss = self.recogniser(features_NTF, feature_lengths_N, batch, **options)
            total, parts = loss.total, dict(loss.parts)
            if routing.balance:
                balance = routing.balance_loss() * loss.count
                total, parts["balance"] = total + balance, balance.detach()
        if self.domain_source() == "router":
            nll = nn.functional.nll_loss(domains_NG.clamp_min(1e-30).log(), batch.domains_N, ignore_index=-1)
            right = (domains_NG.argmax(1) == batch.domains_N).float().mean()
            total = total + self.config.router_weight * nll * loss.count
            parts |= {"domain": nll.detach() * loss.count, "domain_accuracy": right * loss.count}
        return dataclasses.replace(loss, total=total, parts=parts)

    def predictions(self, features_NTF: Tensor, feature_lengths_N: Tensor, batch: Batch) -> Predictions:
        """See `Recogniser.predictions`."""
        domains_NG = self.domain_weights(batch, features_NTF, feature_lengths_N)
        with self.route(batch, feature_lengths_N, domains_NG, with_texts=True):
            return self.recogniser.predictions(features_NTF, feature_lengths_N, batch)

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
        domains_NG: Optional[Tensor],
        fallback: float = 0.0,
        with_texts: bool = False,
    ) -> Iterator[Routing]:
        """Inside, the recogniser sees this batch's routing.

        Args:
            domains_NG: of `domain_weights`
            fallback: see `RouteOptions`
            with_texts: whether the model is given the texts of the batch, as in training
        """
        scale = None
        if domains_NG is not None:
            scale = entropy_fallback(domains_NG, fallback) if fallback else None
            domains_NG, scale = self._leave_to_base(domains_NG, scale)
        lengths = self.recogniser.stream_lengths(feature_lengths_N, batch if with_texts else None)
        statistics = None if self.training else self.statistics
        members_N = self._members_of(batch)
        with self.adapter.route(domains_NG, lengths, scale, statistics, batch.domains_N, members_N) as routing:
            yield routing

    def domain_source(self, options: RouteOptions = RouteOptions()) -> Optional[Route]:
        """Where the domains come from whatever the batch; None where a choice of experts does not depend on them.

        Raises:
            UserError: options are not for these experts, or the route needs what is not there
        """
        if options.any and not self._sees_domains:
            raise UserError("global_route, beta, best and fallback are for experts whose routers see the domain")
        if not self._sees_domains or self.adapter.num_experts == 1:
            if options.fallback or options.best or options.beta is not None:
                raise UserError("fallback, beta and best are for experts whose routers see the domain; leave them out")
            return None
        source = options.global_route or self.config.global_route
        if source == "posterior" and self.classifier is None:
            raise UserError("global_route posterior needs a domain_classifier; give its model folder")
        if source == "router" and self.domain_router is None:
            raise UserError("global_route router needs experts that were trained with it (adaptation.global_route)")
        if source == "model":
            language_columns(getattr(self.recogniser, "languages", {}), self.config.domains)
        if options.beta is not None and source != "label":
            raise UserError(f"beta is for global_route label, not for {source}")
        return source

    def domain_weights(
        self, batch: Batch, features_NTF: Tensor, feature_lengths_N: Tensor, options: RouteOptions = RouteOptions()
    ) -> Optional[Tensor]:
        """(N, G) probability of each of G domains, (N, 1) ones for a single expert; None where no router asks for it.

        Computed once for a batch, and shared by all layers.

        Raises:
            UserError: the batch does not have labels that the route needs; see also `domain_source`
        """
        source, device = self.domain_source(options), features_NTF.device
        if source is None:
            return torch.ones(len(batch), 1, device=device) if self._sees_domains else None
        p_NG = self._from(source, batch, features_NTF, feature_lengths_N, options.beta)
        return nn.functional.one_hot(p_NG.argmax(1), p_NG.shape[1]).to(p_NG) if options.best else p_NG

    def _from(
        self, source: Route, batch: Batch, features_NTF: Tensor, feature_lengths_N: Tensor, beta: Optional[float]
    ) -> Tensor:
        domains, G = self.config.domains, len(self.config.domains)
        if source == "uniform":
            return torch.full((len(batch), G), 1 / G, device=features_NTF.device)
        if source == "label":
            if int(batch.domains_N.min()) < 0:
                name = batch.ids[int(batch.domains_N.argmin())]
                raise UserError(
                    f"utterance {name} has none of the domains {', '.join(domains)}: label it, or use "
                    "global_route posterior or uniform"
                )
            return label_weights(batch.domains_N, G, self.config.beta if beta is None else beta)
        if source == "router":
            states_NTD, lengths_N = self._base_states(features_NTF, feature_lengths_N)
            return self.domain_router(states_NTD, real_mask(lengths_N, states_NTD.shape[1])).exp()
        if source == "model":
            with torch.no_grad(), self._as_base():
                posteriors_NL = self.recogniser.language_posteriors(*self._base_states(features_NTF, feature_lengths_N))
            return over_domains(posteriors_NL, language_columns(self.recogniser.languages, domains))
        with torch.no_grad():
            features = log_mel(batch.audio_NS, batch.audio_lengths_N, self.classifier_folder.config.features)
            return self.classifier.posteriors(*features)

    @torch.no_grad()
    def _base_states(self, features_NTF: Tensor, feature_lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """States of the frozen encoder as it is, and how many of them are real."""
        with self._as_base():
            return self.recogniser.encode(features_NTF, feature_lengths_N)

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        """Inside, the recogniser is its base, without dropout."""
        training = self.recogniser.training
        with self.adapter.disabled():
            self.recogniser.eval()
            try:
                yield
            finally:
                self.recogniser.train(training)

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
