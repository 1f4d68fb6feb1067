"""What `export_zoo.py` exports: architectures of torchvision, timm and transformers at the sizes they are used at.

Every entry builds a module with random weights and example inputs by name; nothing is downloaded. Where a default
configuration has billions of parameters it is made narrower and shallower, and the entry's note says so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

if stub := os.environ.get("TVSTUB"):  # its compiled part may not fit this torch
    sys.path.insert(0, stub)
    __import__("tvstub")

import timm
import torchvision
from zoo_transformers import TRANSFORMERS, transformer

Inputs = dict[str, Tensor]
Built = tuple[nn.Module, Inputs]


@dataclass(frozen=True)
class Architecture:
    name: str
    source: str
    build: Callable[[], Built]
    note: str = ""


class Flat(nn.Module):
    """Takes the inputs in order and returns every floating point tensor of what the model returns, in order."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        out: list[Tensor] = []
        flatten(self.call(self.model, *inputs), out)
        return tuple(out)


def flatten(value: Any, out: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        out.extend([value] if value.is_floating_point() and all(value is not o for o in out) else [])
    elif isinstance(value, dict):
        for name, item in value.items():
            if "past" not in name and "cache" not in name:
                flatten(item, out)
    elif isinstance(value, (list, tuple)):
        for item in value:
            flatten(item, out)


# ---- torchvision

VISION = {
    "": """resnet18 mobilenet_v2 densenet121 efficientnet_b0 vit_b_16 convnext_tiny swin_t shufflenet_v2_x1_0 googlenet
regnet_y_400mf vgg11_bn squeezenet1_1 alexnet mnasnet1_0 maxvit_t swin_v2_t mobilenet_v3_large resnext50_32x4d
regnet_x_800mf efficientnet_v2_s resnet50 wide_resnet50_2 mobilenet_v3_small""",
    "detection.": """ssdlite320_mobilenet_v3_large retinanet_resnet50_fpn fcos_resnet50_fpn ssd300_vgg16
fasterrcnn_mobilenet_v3_large_320_fpn maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn_v2""",
    "segmentation.": "lraspp_mobilenet_v3_large deeplabv3_mobilenet_v3_large fcn_resnet50 deeplabv3_resnet50",
    "video.": "r3d_18 mvit_v1_b s3d swin3d_t r2plus1d_18 mc3_18 mvit_v2_s",
}
SIZES = {
    "maxvit_t": (3, 224, 224), "swin_v2_t": (3, 256, 256), "ssd300_vgg16": (3, 300, 300),
    "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224), "s3d": (3, 16, 224, 224),
    "swin3d_t": (3, 8, 224, 224),
}  # fmt: skip
OF_GROUP = {"": (3, 224, 224), "detection.": (3, 320, 320), "segmentation.": (3, 224, 224), "video.": (3, 8, 112, 112)}


def vision(group: str, name: str) -> Built:
    module: Any = torchvision.models
    for part in group.rstrip(".").split(".") if group else []:
        module = getattr(module, part)
    size = SIZES.get(name, OF_GROUP[group])
    given: dict[str, Any] = {"weights": None}
    if group in ("detection.", "segmentation."):
        given["weights_backbone"] = None
    if group == "detection." and not name.startswith("ssd"):
        given |= {"min_size": size[-1], "max_size": size[-1]}
    model = getattr(module, name)(**given)
    if group == "detection.":  # these take a list of images
        return Flat(model, lambda m, x: m([x])), {"image": torch.randn(*size)}
    return Flat(model, lambda m, x: m(x)), {"image": torch.randn(1, *size)}


def raft() -> Built:
    pair = {name: torch.randn(1, 3, 128, 160) for name in ("first", "second")}
    return Flat(torchvision.models.optical_flow.raft_small(), lambda m, a, b: m(a, b, num_flow_updates=3)[-1]), pair


# ---- timm: one or two of each family, at the size of its pretrained configuration

TIMM = """resnest14d res2net50_26w_4s hrnet_w18_small regnetx_004 deit_small_patch16_224 mixer_s16_224 poolformer_s12
ghostnet_100 mobilevit_xxs mobilevitv2_050 mobileone_s0 repvgg_a0 levit_128s pit_ti_224 cait_xxs24_224
beitv2_base_patch16_224 eva02_tiny_patch14_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 maxvit_rmlp_pico_rw_256
coatnet_0_224 crossvit_9_240 xcit_nano_12_p16_224 twins_pcpvt_small twins_svt_small pvt_v2_b0 gmlp_ti16_224
resmlp_12_224 convmixer_768_32 edgenext_xx_small fastvit_t8 tiny_vit_5m_224 efficientformer_l1 efficientformerv2_s0
hiera_tiny_224 davit_tiny focalnet_tiny_srf gcvit_xxtiny nest_tiny volo_d1_224 visformer_tiny hgnet_tiny hgnetv2_b0
inception_v3 inception_v4 inception_next_tiny legacy_xception xception41 dpn68 selecsls42b skresnet18 tresnet_m
vovnet39a ese_vovnet19b_dw rexnet_100 lcnet_050 tinynet_e mnasnet_100 cspresnet50 cspdarknet53 darknet53 cs3darknet_s
dla34 dla46x_c densenet121 densenetblur121d vgg11 nfnet_l0 dm_nfnet_f0 nf_regnet_b0 eca_nfnet_l0 convit_tiny coat_tiny
coat_lite_tiny tnt_s_patch16_224 nextvit_small repvit_m0_9 repghostnet_100 fasternet_t0 starnet_s1 shvit_s1
swiftformer_xs mambaout_femto mvitv2_tiny sequencer2d_s convformer_s18 caformer_s18 efficientvit_b0 efficientvit_m0
convnext_atto convnextv2_atto efficientnet_lite0 efficientnetv2_rw_t mixnet_s hardcorenas_a fbnetc_100
spnasnet_100 semnasnet_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium fbnetv3_b
gernet_s botnet26t_256 halonet26t lambda_resnet26t eca_halonext26ts sebotnet33ts_256 gcresnet33ts resnetv2_50
resnetv2_50x1_bit resnetrs50 ecaresnet26t seresnet50 legacy_seresnext26_32x4d legacy_senet154 nasnetalarge
pnasnet5large inception_resnet_v2 regnety_004 regnetz_005 vit_relpos_small_patch16_224 vit_small_r26_s32_224
samvit_base_patch16_224 vitamin_small_224 vit_tiny_patch16_224 flexivit_small vit_small_patch14_reg4_dinov2
deit3_small_patch16_224 rdnet_tiny mobilenetv5_base hieradet_small gmixer_24_224 edgenext_small swin_s3_tiny_224
swinv2_tiny_window8_256 convnext_tiny resnet50_gn resnetblur50 efficientnet_b0_g8_gn naflexvit_base_patch16_gap"""


def timm_model(name: str) -> Built:
    model = timm.create_model(name, pretrained=False)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    return Flat(model, lambda m, x: m(x)), {"image": torch.randn(1, *size)}


def hugging_face(name: str) -> Built:
    model, given = transformer(name)
    names = list(given)
    return Flat(model, lambda m, *values: m(**dict(zip(names, values, strict=True)), return_dict=True)), given


# ---- everything


def catalogue() -> dict[str, Architecture]:
    """By "source/name"; the sources take turns, so that a broad variety comes early."""
    one = [
        Architecture(name, "torchvision", lambda g=group, n=name: vision(g, n), note)  # type: ignore[misc]
        for group, names in VISION.items()
        for name in names.split()
        for note in ["images of 320" if group == "detection." and not name.startswith("ssd") else ""]
    ]
    one.append(Architecture("raft_small", "torchvision", raft, "3 updates, images of 128 x 160"))
    two = [Architecture(name, "timm", lambda n=name: timm_model(n)) for name in TIMM.split()]  # type: ignore[misc]
    three = [
        Architecture(name, "transformers", lambda n=name: hugging_face(n), *spec[3:])  # type: ignore[misc]
        for name, spec in TRANSFORMERS.items()
    ]
    # the longest list has two turns
    rounds = zip_longest(one, two[::2], two[1::2], three)
    return {f"{a.source}/{a.name}": a for turn in rounds for a in turn if a is not None}
