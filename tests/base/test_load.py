"""Loading: the logits of the original, a head that only its seed decides, and packed layers equal to the bit."""

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fedpeft.base import BaseArtifact, build, load_model, load_tokenizer  # noqa: E402
from fedpeft.base.artifact import WEIGHTS_FILE  # noqa: E402
from fedpeft.base.residency import QuantizedEmbedding, QuantizedLinear  # noqa: E402
from fedpeft.errors import ConfigInvalid, IntegrityFailed  # noqa: E402

pytestmark = pytest.mark.torch
SCHEMES = ("none", "int8", "nf4", "int4-g32")
LABELS = ("negative", "neutral", "positive")
IDS = torch.tensor([[5, 6, 11, 9, 10, 13, 7], [7, 8, 12, 6, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def classifier(artifact: BaseArtifact, *, head_seed: int = 1, residency: str = "dense") -> nn.Module:
    return load_model(artifact, task="classify", labels=LABELS, head_seed=head_seed, residency=residency)


def logits(model: nn.Module) -> "torch.Tensor":
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


def load(artifact: BaseArtifact, residency: str) -> nn.Module:
    if "causal-lm" in artifact.manifest.tasks:
        return load_model(artifact, task="causal-lm", labels=(), head_seed=1, residency=residency)
    return classifier(artifact, residency=residency)


def test_an_unquantized_encoder_is_the_original_to_the_bit(store: Path, tiny_bert: Path):
    from transformers import BertModel

    model = classifier(build(str(tiny_bert), quantize="none", store=store))
    original = BertModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        expected = original(input_ids=IDS, attention_mask=MASK)
        found = model.bert(input_ids=IDS, attention_mask=MASK)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_an_unquantized_decoder_is_the_original_to_the_bit(store: Path, tiny_llama: Path):
    from transformers import LlamaForCausalLM

    artifact = build(str(tiny_llama), quantize="none", store=store)
    model = load_model(artifact, task="causal-lm", labels=(), head_seed=0)
    original = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    assert torch.equal(logits(model), logits(original))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("scheme", "bound"), [("int8", 0.05), ("int4-g32", 0.5), ("nf4", 0.5)])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_quantized_logits_stay_close(  # random weights: far less forgiving than trained ones
    store: Path, request: pytest.FixtureRequest, name: str, scheme: str, bound: float
):
    source = str(request.getfixturevalue(name))
    exact = logits(load(build(source, quantize="none", store=store), "dense"))
    found = logits(load(build(source, quantize=scheme, store=store), "dense"))
    error = (found - exact).norm() / exact.norm()
    assert 0 < error < bound


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_packed_layers_give_the_logits_of_dense_ones_to_the_bit(
    store: Path, request: pytest.FixtureRequest, name: str, scheme: str
):
    artifact = build(str(request.getfixturevalue(name)), quantize=scheme, store=store)
    dense, packed = load(artifact, "dense"), load(artifact, "quantized")
    assert torch.equal(logits(packed), logits(dense))
    kinds = [type(module) for module in packed.modules()]
    assert kinds.count(QuantizedLinear) >= 13
    assert QuantizedEmbedding in kinds
    assert [type(module) for module in packed.modules() if type(module) in (nn.Linear, nn.Embedding)] == (
        [nn.Linear] if name == "tiny_bert" else []  # the new head only
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_packed_layers_give_the_gradients_of_dense_ones_before_and_after_evaluation(
    store: Path, request: pytest.FixtureRequest, name: str, scheme: str
):
    """The trap of packed CPU layers elsewhere: one forward in eval mode and training has no gradient any more."""
    artifact = build(str(request.getfixturevalue(name)), quantize=scheme, store=store)
    gradients = {}
    for residency in ("dense", "quantized"):
        model = load(artifact, residency)
        steps = []
        for training in (True, False, True):
            model.train(training)
            if not training:
                logits(model)
                continue
            shift = torch.zeros(64, requires_grad=True)  # as an adapter in the first layer would train
            first = next(module for path, module in model.named_modules() if path.endswith(("query", "q_proj")))
            hook = first.register_forward_hook(lambda _m, _i, output, shift=shift: output + shift)
            model(input_ids=IDS, attention_mask=MASK).logits.square().mean().backward()
            hook.remove()
            steps.append(shift.grad)
        assert torch.equal(steps[0], steps[1])
        gradients[residency] = steps[0]
    assert gradients["dense"].norm() > 0
    assert torch.allclose(gradients["quantized"], gradients["dense"], rtol=1e-4, atol=1e-7)


def test_a_packed_layer_has_the_derivatives_that_differences_say(store: Path, tiny_bert: Path):
    artifact = build(str(tiny_bert), quantize="nf4", store=store)
    layer = classifier(artifact, residency="quantized").get_submodule("bert.encoder.layer.0.intermediate.dense")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    direction = torch.ones(3, 96)
    layer(x).backward(direction)
    assert torch.allclose(x.grad, direction @ layer.weight, atol=1e-5)
    layer.bias.requires_grad_(True)
    layer(x).backward(direction)
    assert torch.equal(layer.bias.grad, torch.full((96,), 3.0))


def test_training_over_packed_layers_keeps_no_unpacked_weight(store: Path, tiny_bert: Path):
    artifact = build(str(tiny_bert), quantize="nf4", store=store)
    weights = {(64, 64), (96, 64), (64, 96)}
    saved: dict[str, set[tuple[int, ...]]] = {}
    for residency in ("dense", "quantized"):
        model = classifier(artifact, residency=residency)
        shapes = saved.setdefault(residency, set())

        def note(tensor: "torch.Tensor", shapes: set[tuple[int, ...]] = shapes) -> "torch.Tensor":
            shapes.add(tuple(tensor.shape))
            return tensor

        embeddings = torch.randn(2, 7, 64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(inputs_embeds=embeddings, attention_mask=MASK).logits.sum()
        loss.backward()
        assert embeddings.grad.norm() > 0
    assert saved["dense"] >= weights
    assert not saved["quantized"] & weights


def test_copies_of_a_model_share_its_packed_weights(store: Path, tiny_bert: Path):
    model = classifier(build(str(tiny_bert), quantize="nf4", store=store), residency="quantized")
    twin = copy.deepcopy(model)
    path = "bert.encoder.layer.0.intermediate.dense"
    assert twin.get_submodule(path) is not model.get_submodule(path)
    assert twin.get_submodule(path).packed is model.get_submodule(path).packed
    assert torch.equal(logits(twin), logits(model))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_packed_weights_lie_in_the_artifacts_own_pages_which_every_process_shares(store: Path, tiny_bert: Path):
    artifact = build(str(tiny_bert), quantize="nf4", store=store)
    model = classifier(artifact, residency="quantized")
    places = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith(str((artifact.path / WEIGHTS_FILE).resolve()))
    ]
    packed = [module.packed for module in model.modules() if isinstance(module, QuantizedLinear)]
    parts = [part for weight in packed for part in weight.parts.values()]
    assert parts
    assert all(any(start <= part.data_ptr() < end for start, end in places) for part in parts)


def test_the_head_depends_on_its_seed_alone_and_no_generator_moves(store: Path, tiny_bert: Path, tiny_llama: Path):
    for name, model in (("classifier.weight", tiny_bert), ("score.weight", tiny_llama)):
        artifact = build(str(model), quantize="int8", store=store)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = classifier(artifact, head_seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(6)
        second = classifier(artifact, head_seed=3, residency="quantized")
        other = classifier(artifact, head_seed=4)
        assert torch.equal(first.get_parameter(name), second.get_parameter(name))
        assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
        assert 0.1 < first.get_parameter(name).std() < 0.3  # initializer_range is 0.2
        assert artifact.head_parameters("classify")[0] == name


def test_the_head_has_known_values(store: Path, tiny_bert: Path):
    model = classifier(build(str(tiny_bert), quantize="int8", store=store), head_seed=7)
    expected = torch.tensor([-0.004968204069882631, 0.044578470289707184, 0.14881689846515656])
    assert torch.equal(model.classifier.weight[0, :3], expected)
    assert torch.equal(model.classifier.bias, torch.zeros(3))


@pytest.mark.parametrize("residency", ["dense", "quantized"])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_everything_is_frozen_float32_without_dropout(
    store: Path, request: pytest.FixtureRequest, name: str, residency: str
):
    artifact = build(str(request.getfixturevalue(name)), quantize="int8", store=store)
    model = classifier(artifact, residency=residency)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    model.train()
    assert torch.equal(logits(model), logits(model))
    model.eval()
    evaluated = logits(model)
    assert torch.equal(logits(model.train()), evaluated)


def test_labels_are_in_the_config_in_their_order(store: Path, tiny_bert: Path):
    model = classifier(build(str(tiny_bert), quantize="int8", store=store))
    assert model.config.id2label == dict(enumerate(LABELS))
    assert logits(model).shape == (2, 3)


@pytest.mark.parametrize("labels", [(), ("one",), ("same", "same")])
def test_fewer_than_two_distinct_labels_are_refused(store: Path, tiny_bert: Path, labels: tuple[str, ...]):
    artifact = build(str(tiny_bert), quantize="int8", store=store)
    with pytest.raises(ConfigInvalid, match="labels"):
        load_model(artifact, task="classify", labels=labels, head_seed=0)


def test_an_encoder_does_not_load_as_a_causal_language_model(store: Path, tiny_bert: Path):
    artifact = build(str(tiny_bert), quantize="int8", store=store)
    with pytest.raises(ConfigInvalid, match="bert for classify"):
        load_model(artifact, task="causal-lm", labels=(), head_seed=0)


def test_loading_the_weights_of_another_artifact_fails(tmp_path: Path, tiny_bert: Path, tiny_llama: Path):
    bert = build(str(tiny_bert), quantize="int8", store=tmp_path)
    llama = build(str(tiny_llama), quantize="int8", store=tmp_path)
    weights = bert.path / "model.safetensors"
    weights.unlink()
    weights.write_bytes((llama.path / "model.safetensors").read_bytes())
    with pytest.raises(IntegrityFailed, match=r"model\.safetensors"):
        classifier(bert)


def test_the_tokenizer_is_the_sources_and_can_pad(store: Path, tiny_llama: Path):
    tokenizer = load_tokenizer(build(str(tiny_llama), quantize="int8", store=store))
    assert tokenizer(["late flight", "thank you gate"], padding=True)["input_ids"] == [[5, 6, 0], [7, 8, 13]]


def test_a_decoder_without_padding_token_gets_its_tokenizers(store: Path, tiny_llama: Path):
    model = classifier(build(str(tiny_llama), quantize="none", store=store))
    assert model.config.pad_token_id == 0
    alone = model(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits
    assert torch.allclose(logits(model)[1:], alone, atol=1e-5)  # the padding changes nothing
