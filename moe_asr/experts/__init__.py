"""Mixtures of LoRA experts for any frozen torch model."""

from moe_asr.experts.adapter import Adapter
from moe_asr.experts.adapter_files import (
    check_base,
    load_adapter,
    read_adapter_info,
    read_adapter_tensors,
    save_adapter,
)
from moe_asr.experts.attach import attach, matching_layers
from moe_asr.experts.context import Routing
from moe_asr.experts.domain_router import DomainRouter
from moe_asr.experts.identity import adapter_identity, base_identity
from moe_asr.experts.layer import ExpertLinear, ExpertSpec
from moe_asr.experts.peft_format import export_expert, import_expert
from moe_asr.experts.router_spec import RouterSpec
from moe_asr.experts.routers import Router
from moe_asr.experts.stack import stack_adapters
from moe_asr.experts.statistics import RoutingStatistics

__all__ = [
    "Adapter",
    "DomainRouter",
    "ExpertLinear",
    "ExpertSpec",
    "Router",
    "RouterSpec",
    "Routing",
    "RoutingStatistics",
    "adapter_identity",
    "attach",
    "base_identity",
    "check_base",
    "export_expert",
    "import_expert",
    "load_adapter",
    "matching_layers",
    "read_adapter_info",
    "read_adapter_tensors",
    "save_adapter",
    "stack_adapters",
]
