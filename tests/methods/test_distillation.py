import dataclasses

import pytest
import torch
from recognisers import batch, cut, features, fill, recogniser, save_classifier

from moe_asr.data.manifests import Utterance
from moe_asr.errors import UserError
from moe_asr.experts import ExpertSpec, RouterSpec
from moe_asr.methods.adapt import adapt, load_adapted
from moe_asr.methods.adaptation import AdaptationConfig
from moe_asr.methods.distillation import DistillationConfig, Distiller
from moe_asr.quant import QuantConfig, quantise

LORA = ExpertSpec(("default",), 1, 2, router=RouterSpec(route="given", select="all"))
LANGUAGES = ["de", "fr", "de"]
UTTERANCES = [Utterance(f"u{n}", "", 1, 1, "", language=name) for n, name in enumerate(LANGUAGES)]


def model(kind, nf4=False):
    base = recogniser(kind)
    if nf4:
        quantise(base, QuantConfig())
    return base


def student_of(kind, seed=0, nf4=False, **options):
    adapted = adapt(model(kind, nf4), AdaptationConfig(dataclasses.replace(LORA, **options)))
    return fill(adapted, seed).eval()


@pytest.fixture
def teachers(tmp_path):
    """Makes teachers of two languages; returns where they are."""

    def make(kind, nf4=False):
        for seed, name in enumerate(("de", "fr"), 1):
            student_of(kind, seed, nf4).save(tmp_path / name / "final")
        return str(tmp_path / "{language}/final")

    return make


def told():
    return dataclasses.replace(batch(), languages=LANGUAGES)


@pytest.mark.parametrize("kind, nf4", [("whisper", False), ("whisper", True), ("conformer_aed", False),
                                       ("speech_llm", False)])  # fmt: skip
def test_each_utterance_is_taught_by_its_own_teacher(kind, nf4, teachers, tmp_path):
    pattern, student = teachers(kind, nf4), student_of(kind, 3, nf4, rank=3)
    config = DistillationConfig(pattern, weight=0.3, temperature=1.5)
    loss = Distiller(student, config, UTTERANCES)(*features(told()), told())
    kl = ce = 0.0
    for n, name in enumerate(LANGUAGES):
        one = cut(told(), n)
        log_p = []
        for of in (load_adapted(model(kind, nf4), tmp_path / name / "final"), student):
            with torch.no_grad():
                said = of.predictions(*features(one), one)
            log_p.append((said.hidden_MD @ said.weight_VD.T).double() / 1.5)
        (t, s), T = [x.log_softmax(-1) for x in log_p], 1.5
        kl += (t.exp() * (t - s)).sum()
        ce -= (T * log_p[1]).log_softmax(-1).gather(1, said.targets_M[:, None]).sum()
    assert float(loss.parts["kl"]) == pytest.approx(float(kl), rel=1e-3)
    assert float(loss.parts["ce"]) == pytest.approx(float(ce), rel=1e-4)
    token_loss = 0.7 * ce + 0.3 * T**2 * kl
    weight = student.recogniser.ctc_weight if "ctc" in loss.parts else 0.0
    expected = (1 - weight) * token_loss + weight * loss.parts.get("ctc", torch.zeros(()))
    assert float(loss.total.detach()) == pytest.approx(float(expected), rel=1e-3)
    assert kl > 0.01
    loss.total.backward()
    reached = {id(p) for p in student.parameters() if p.grad is not None}
    assert reached == {id(p) for p in student.adapter.parameters()}


def test_a_student_that_is_its_teacher_is_no_distance_away(teachers):
    pattern, student = teachers("whisper"), student_of("whisper", 1)  # the teacher of de
    one = dataclasses.replace(told(), languages=["de"] * 3)
    distiller = Distiller(student, DistillationConfig(pattern, weight=1.0), UTTERANCES[:1])
    with torch.no_grad():
        loss = distiller(*features(one), one)
    assert float(loss.parts["kl"]) == float(loss.total.detach()) == 0.0
    both = Distiller(student, DistillationConfig(pattern, weight=1.0), UTTERANCES)
    with torch.no_grad():  # with experts of two teachers side by side, sums are rounded in another order
        assert abs(float(both(*features(one), one).parts["kl"])) < 1e-6


def stored(*modules):
    """Bytes of all parameters and buffers, each storage once."""
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("nf4", [False, True])
def test_teachers_share_the_weights_of_the_base(teachers, nf4):
    pattern, student = teachers("whisper", nf4), student_of("whisper", 3, nf4)
    alone = stored(student)
    teacher = Distiller(student, DistillationConfig(pattern), UTTERANCES).teacher
    experts = sum(p.numel() * p.element_size() for p in teacher.adapter.parameters())
    assert stored(student, teacher) == alone + experts
    own = {name: t for name, t in student.recogniser.state_dict(keep_vars=True).items()}
    for name, tensor in teacher.recogniser.state_dict(keep_vars=True).items():
        assert (tensor is own[name]) != name.endswith((".A", ".B")), name
    student.train()
    assert not any(module.training for module in teacher.modules())
    assert all(not p.requires_grad for p in teacher.recogniser.parameters() if p.shape[:1] != (2,))


def test_a_student_with_routers_that_remember_the_encoder(teachers, tmp_path):
    """The copy of the base has no hooks of the student's routers."""
    router = RouterSpec(route="local", select="all", granularity="utterance", source="memory")
    pattern, student = (
        teachers("conformer_aed"),
        student_of("conformer_aed", 3, targets=(r"decoder.*q_proj",), num_experts=2, router=router),
    )
    distiller = Distiller(student, DistillationConfig(pattern), UTTERANCES)
    assert len(student.recogniser.encoder._forward_hooks) == 1
    assert len(distiller.teacher.recogniser.encoder._forward_hooks) == 0
    assert torch.isfinite(distiller(*features(told()), told()).total)


def test_what_cannot_teach_is_named(teachers, tmp_path):
    pattern, student = teachers("whisper"), student_of("whisper")

    def wrong(match, student=student, utterances=UTTERANCES, **options):
        with pytest.raises(UserError, match=match):
            Distiller(student, DistillationConfig(**{"teachers": pattern, **options}), utterances)

    it = [*UTTERANCES, Utterance("u9", "", 1, 1, "", language="it")]
    wrong("no teacher for language it in .*it/final: train it first", utterances=it)
    mapping = {name: str(tmp_path / name / "final") for name in ("de", "fr")}
    Distiller(student, DistillationConfig(mapping), UTTERANCES)
    wrong("utterance u9 has language 'it', but teachers are given for de, fr", utterances=it, teachers=mapping)
    wrong("utterance u9 has no language", utterances=[Utterance("u9", "", 1, 1, "")])
    wrong("use one of the placeholders", teachers=str(tmp_path / "de/final"))
    wrong("belongs to another base model", student=student_of("conformer_aed"))
    wrong("has CTC alone", student=student_of("conformer_ctc"))
    bank = dataclasses.replace(LORA, num_experts=3, router=RouterSpec(threshold_over="frame"))
    classifier = AdaptationConfig(bank, domain_classifier=save_classifier(tmp_path / "classifier"))
    adapt(recogniser("whisper"), classifier).save(tmp_path / "de/final")
    wrong("has a domain classifier")
    for options, match in (
        ({"weight": 1.5}, "weight must be from 0 to 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"teachers": ""}, "name the teachers"),
    ):
        wrong(match, **options)
