"""Networks of other projects, written down by structure and key names, to compare with."""

import torch
import torch.nn.functional as F
from torch import nn


def filled(model, seed=0):
    """Random weights and batch-norm statistics, so that nothing is neutral."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=random)
                module.running_var.uniform_(0.5, 2.0, generator=random)
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.normal_(0, 0.2, generator=random)
            elif isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.normal_(0, fan**-0.5, generator=random)
                if module.bias is not None:
                    module.bias.normal_(0, 0.2, generator=random)
    return model.eval()


class Block(nn.Module):
    """Convolution, batch norm and ReLU under the names that both BiSeNets use."""

    def __init__(self, inputs, outputs, kernel, stride=1, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.last = nn.ReLU() if relu else nn.Identity()

    def forward(self, x):
        return self.last(self.bn(self.conv(x)))


class Basic(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Deep(nn.Module):
    """The bottleneck of Caffe: its stride lies in the first convolution."""

    def __init__(self, inputs, middle, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, middle, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, 4 * middle, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * middle)
        self.downsample = None
        if stride > 1 or inputs != 4 * middle:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * middle, 1, stride, bias=False), nn.BatchNorm2d(4 * middle)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Stem(nn.Module):
    """What ResNets share: the first convolution and pooling."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)

    def stem(self, x):
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)


class Trunk(Stem):
    """ResNet-18."""

    def __init__(self):
        super().__init__()
        inputs = 64
        for layer, outputs in enumerate((64, 128, 256, 512), 1):
            blocks = Basic(inputs, outputs, 1 if layer == 1 else 2), Basic(outputs, outputs, 1)
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x):
        x8 = self.layer2(self.layer1(self.stem(x)))
        x16 = self.layer3(x8)
        return x16, self.layer4(x16)


def mean(x):
    return F.adaptive_avg_pool2d(x, 1)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def full(x, factor):
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class CoinCheungARM(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv = Block(inputs, 128, 3)
        self.conv_atten = nn.Conv2d(128, 128, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(128)

    def forward(self, x):
        u = self.conv(x)
        return u * torch.sigmoid(self.bn_atten(self.conv_atten(mean(u))))


class CoinCheungFFM(nn.Module):
    def __init__(self, old):
        super().__init__()
        self.old = old
        self.convblk = Block(256, 256, 1)
        if old:
            self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
            self.conv2 = nn.Conv2d(64, 256, 1, bias=False)
        else:
            self.conv = nn.Conv2d(256, 256, 1, bias=False)
            self.bn = nn.BatchNorm2d(256)

    def forward(self, spatial, context):
        u = self.convblk(torch.cat([spatial, context], 1))
        a = mean(u)
        a = self.conv2(F.relu(self.conv1(a))) if self.old else self.bn(self.conv(a))
        return u + u * torch.sigmoid(a)


class CoinCheungHead(nn.Module):
    def __init__(self, inputs, middle, classes, bias):
        super().__init__()
        self.conv = Block(inputs, middle, 3)
        self.conv_out = nn.Conv2d(middle, classes, 1, bias=bias)

    def forward(self, x):
        return self.conv_out(self.conv(x))


class CoinCheungContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.resnet = Trunk()
        self.arm16, self.arm32 = CoinCheungARM(256), CoinCheungARM(512)
        self.conv_head16, self.conv_head32 = Block(128, 128, 3), Block(128, 128, 3)
        self.conv_avg = Block(512, 128, 1)

    def forward(self, x):
        x16, x32 = self.resnet(x)
        up32 = self.conv_head32(double(self.arm32(x32) + self.conv_avg(mean(x32))))
        return self.conv_head16(double(self.arm16(x16) + up32)), up32


class CoinCheungSpatial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = Block(3, 64, 7, 2), Block(64, 64, 3, 2)
        self.conv3, self.conv_out = Block(64, 64, 3, 2), Block(64, 128, 1)

    def forward(self, x):
        return self.conv_out(self.conv3(self.conv2(self.conv1(x))))


class CoinCheung(nn.Module):
    """BiSeNetV1 of CoinCheung/BiSeNet; ``old`` has the published gate and no bias."""

    def __init__(self, classes, old=False):
        super().__init__()
        self.cp, self.sp, self.ffm = CoinCheungContext(), CoinCheungSpatial(), CoinCheungFFM(old)
        self.conv_out = CoinCheungHead(256, 256, classes, not old)
        self.conv_out16 = CoinCheungHead(128, 64, classes, not old)
        self.conv_out32 = CoinCheungHead(128, 64, classes, not old)

    def forward(self, x):
        c8, c16 = self.cp(x)
        fused = self.ffm(self.sp(x), c8)
        return (
            full(self.conv_out(fused), 8),
            full(self.conv_out16(c8), 8),
            full(self.conv_out32(c16), 16),
        )


class MMSegARM(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv_layer = Block(inputs, 128, 3)
        self.atten_conv_layer = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), Block(128, 128, 1, relu=False), nn.Sigmoid()
        )

    def forward(self, x):
        u = self.conv_layer(x)
        return u * self.atten_conv_layer(u)


class MMSegContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Trunk()
        self.arm16, self.arm32 = MMSegARM(256), MMSegARM(512)
        self.conv_head16, self.conv_head32 = Block(128, 128, 3), Block(128, 128, 3)
        self.gap_conv = nn.Sequential(nn.AdaptiveAvgPool2d(1), Block(512, 128, 1))

    def forward(self, x):
        x16, x32 = self.backbone(x)
        up32 = self.conv_head32(double(self.arm32(x32) + self.gap_conv(x32)))
        return self.conv_head16(double(self.arm16(x16) + up32)), up32


class MMSegFFM(nn.Module):
    """Its gate has a ReLU between batch norm and sigmoid."""

    def __init__(self):
        super().__init__()
        self.conv1 = Block(256, 256, 1)
        self.conv_atten = nn.Sequential(Block(256, 256, 1), nn.Sigmoid())

    def forward(self, spatial, context):
        u = self.conv1(torch.cat([spatial, context], 1))
        return u * self.conv_atten(mean(u)) + u


class MMSegBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_path, self.ffm = MMSegContext(), MMSegFFM()
        self.spatial_path = nn.Sequential()
        for index, block in enumerate(
            (Block(3, 64, 7, 2), Block(64, 64, 3, 2), Block(64, 64, 3, 2), Block(64, 128, 1)), 1
        ):
            self.spatial_path.add_module(f"layer{index}", block)

    def forward(self, x):
        c8, c16 = self.context_path(x)
        return self.ffm(self.spatial_path(x), c8), c8, c16


class MMSegHead(nn.Module):
    def __init__(self, inputs, middle, classes):
        super().__init__()
        self.convs = nn.Sequential(Block(inputs, middle, 3))
        self.conv_seg = nn.Conv2d(middle, classes, 1)

    def forward(self, x):
        return self.conv_seg(self.convs(x))


class MMSeg(nn.Module):
    """BiSeNetV1 of MMSegmentation."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = MMSegBackbone()
        self.decode_head = MMSegHead(256, 256, classes)
        self.auxiliary_head = nn.ModuleList(MMSegHead(128, 64, classes) for _ in range(2))

    def forward(self, x):
        fused, c8, c16 = self.backbone(x)
        return (
            full(self.decode_head(fused), 8),
            full(self.auxiliary_head[0](c8), 8),
            full(self.auxiliary_head[1](c16), 16),
        )


class Dilations(nn.Module):
    """The classifier that returns after its second dilation."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, classes, 3, 1, d, d) for d in (6, 12, 18, 24)
        )

    def forward(self, x):
        return self.conv2d_list[0](x) + self.conv2d_list[1](x)


class AdaptSegNet(Stem):
    """DeepLabV2 on BGR images of 0 to 255 less a mean; without its pooling's ``ceil_mode``."""

    def __init__(self, classes, levels, depths=(3, 4, 23, 3)):
        super().__init__()
        inputs = 64
        for layer, depth in enumerate(depths):
            middle = 64 << layer
            stride, dilation = ((1, 1), (2, 1), (1, 2), (1, 4))[layer]
            blocks = [Deep(inputs, middle, stride, dilation)]
            blocks += [Deep(4 * middle, middle, 1, dilation) for _ in range(depth - 1)]
            setattr(self, f"layer{layer + 1}", nn.Sequential(*blocks))
            inputs = 4 * middle
        self.levels = levels
        self.layer5 = Dilations(2048 if levels == 1 else 1024, classes)
        if levels == 2:
            self.layer6 = Dilations(2048, classes)

    def forward(self, x):
        third = self.layer3(self.layer2(self.layer1(self.stem(x))))
        last = self.layer4(third)
        heads = (
            (self.layer5(last),) if self.levels == 1 else (self.layer6(last), self.layer5(third))
        )
        return tuple(full(head, 8) for head in heads)
