"""LSE: learning from scale-invariant examples.

Source: Subhani and Ali, "Learning from Scale-Invariant Examples for Domain Adaptation in Semantic
Segmentation", ECCV 2020, in the form of the released code: target images are ranked per class by
confidence, and the labels that the best of them get at their own scale are taught on up-scaled
patches.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgeuda.labels import IGNORE
from edgeuda.methods.base import Batch, Losses, Method
from edgeuda.methods.losses import cross_entropy_map, masked_mean
from edgeuda.methods.registry import MethodType, register_method
from edgeuda.methods.settings import Optimisation, Positive, Rate, Weight
from edgeuda.models.network import Network, upsample
from edgeuda.models.predictor import normalise
from edgeuda.spec import Preprocessing
from edgeuda.views.style import restyle
from edgeuda.views.transforms import SOURCE, colour

ValidRule = Literal["any", "nearest", "half"]


class LseSettings(Optimisation):
    """Rounds of learning from up-scaled patches.

    Attributes:
        steps: Most steps of a round; the round has ``epochs`` passes over its patches.
        epochs: Passes.
        portion: Share of images in the first round, divided by ``divisor``, see `select_images`.
        divisor: By default the number of classes.
        growth: What later rounds add to it.
        last: The last portion.
        patches: Per selected image.
        zoom: Factor per axis by which a patch is scaled up.
        valid: Which pixels of a scaled patch have a label, see `patch`.
        focal_weight: Weight of the focal term on patches (beta); 0 leaves it out.
        gamma: Its focusing exponent.
        augment: Whether source images pass the colour chain.
    """

    epochs: Positive = 2
    portion: Rate = 0.1
    divisor: Positive | None = None
    growth: Weight = 0.05
    last: Weight = 0.4
    patches: Positive = 4
    zoom: Annotated[float, Field(ge=1)] = 2.0
    valid: ValidRule = "any"
    focal_weight: Weight = 0.1
    gamma: Weight = 3.0
    augment: bool = True

    def portions(self) -> list[float]:
        """Return the portion of each round."""
        found = [self.portion]
        while self.growth and found[-1] + self.growth <= self.last + 1e-9:
            found.append(found[-1] + self.growth)
        return found


class Selection(NamedTuple):
    """What a round learns from.

    Attributes:
        images: Indices of the selected images, in order of their first selection.
        threshold_image: ``[K]`` index of the first image that missed the selection of each class,
            -1 where the class is predicted nowhere.
    """

    images: list[int]
    threshold_image: npt.NDArray[np.int64]


def class_confidence(confidence: Tensor, label: Tensor, classes: int) -> Tensor:
    """Return ``[K]`` float64: mean confidence of the pixels predicted as each class, nan if none.

    Args:
        confidence: ``[H, W]``.
        label: ``[H, W]`` int64.
        classes: Number of classes K.
    """
    flat = label.flatten()
    total = torch.bincount(flat, confidence.flatten().double(), classes)
    return total / torch.bincount(flat, minlength=classes)


def select_images(
    scores: npt.NDArray[np.float64], portion: float, divisor: int | None = None
) -> Selection:
    """Select the images of which each class is surest.

    Of the images that a class is predicted in, ``portion / divisor`` are selected for it. The
    class's entropy threshold comes from the first that is not, or the last if all are.

    Args:
        scores: ``[M, K]`` of `class_confidence`, nan where a class is not predicted.
        portion: Share p.
        divisor: By default the number of classes K; the released code divides by 19, whatever the
            classes.
    """
    classes = scores.shape[1]
    selected: dict[int, None] = {}
    missed = np.full(classes, -1, np.int64)
    for index in range(classes):
        holding = np.flatnonzero(~np.isnan(scores[:, index]))
        if holding.size == 0:
            continue
        order = holding[np.argsort(-scores[holding, index], kind="stable")]
        taken = int(order.size * portion / (divisor or classes))
        selected |= dict.fromkeys(order[:taken].tolist())
        missed[index] = order[min(taken, order.size - 1)]
    return Selection(list(selected), missed)


def class_normalised_entropy(probability: Tensor) -> Tensor:
    """Return ``[H, W]``: the entropy of ``[K, H, W]`` over its range in the pixel's class.

    Within each predicted class 0 is the surest pixel and 1 the least sure; all 0 if they are equal.
    """
    classes = probability.shape[0]
    label = probability.max(0).indices.flatten()
    entropy = -(probability * (probability + 1e-12).log()).sum(0).flatten()
    low = entropy.new_zeros(classes).scatter_reduce(0, label, entropy, "amin", include_self=False)
    high = entropy.new_zeros(classes).scatter_reduce(0, label, entropy, "amax", include_self=False)
    spread = (high - low)[label]
    scaled = torch.where(spread > 0, (entropy - low[label]) / spread.clamp(min=1e-12), 0)
    return scaled.view(probability.shape[1:])


def patch(
    probability: Tensor,
    image: Tensor,
    thresholds: Tensor,
    corner: tuple[int, int],
    zoom: float,
    rule: ValidRule,
) -> tuple[Tensor, Tensor]:
    """Cut a part of an image, scale it up to the image's size, and label it as the whole was.

    Args:
        probability: ``[K, H, W]`` of the whole image.
        image: ``[3, H, W]`` float.
        thresholds: ``[K]``: only pixels whose `class_normalised_entropy` is below have a label.
        corner: Row and column of the cut's upper left.
        zoom: Factor per axis; the cut is ``1 / zoom`` of the image's sides.
        rule: Where a scaled pixel counts as labelled: where any of its sources is (``"any"``, as
            released), by the nearest source, or where half of it is.

    Returns:
        Image ``[3, H, W]`` and label ``[H, W]`` int64, 255 where there is none.
    """
    height, width = image.shape[1:]
    rows, columns = round(height / zoom), round(width / zoom)
    window = np.s_[..., corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    label = probability.max(0).indices
    valid = (class_normalised_entropy(probability) < thresholds.to(probability)[label]).float()

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x[None], (height, width), mode="bilinear", align_corners=True)[0]

    if rule == "nearest":
        known = F.interpolate(valid[window][None, None], (height, width), mode="nearest")[0, 0] > 0
    else:
        share = up(valid[window][None])[0]
        known = share > 0 if rule == "any" else share >= 0.5
    larger = up(probability[window]).max(0).indices
    return up(image[window]), torch.where(known, larger, IGNORE)


def focal_cross_entropy(loss: Tensor, mask: Tensor, weight: float, gamma: float) -> Tensor:
    """Return the mean of ``l + weight * l (1 - exp(-l))^gamma`` where ``mask`` holds; 0 if nowhere.

    Args:
        loss: ``[N, H, W]`` cross-entropy.
        mask: Same shape, bool.
        weight: Of the focal term.
        gamma: Focusing exponent.
    """
    return masked_mean(loss + weight * loss * (1 - torch.exp(-loss)) ** gamma, mask)


class Lse(Method):
    """One round of training on source images and on labelled target patches.

    Batch norm stays frozen.

    Args:
        settings: Parameters.
        weights: ``[K]`` class weights of the source term.
    """

    def __init__(self, settings: LseSettings, weights: Tensor) -> None:
        self.settings, self.weights = settings, weights

    @property
    def freezes_batch_norm(self) -> bool:
        """True: patches and source images are normalised alike."""
        return True

    def step(self, model: Network, batch: Batch, preprocessing: Preprocessing) -> Losses:
        """Return the source loss and the focal loss on patches."""
        settings = self.settings
        target, label = batch.require_target(), batch.pseudo_label
        assert label is not None
        size = (target.shape[2], target.shape[3])
        source = restyle(batch.source, target, settings.style)
        if settings.augment:
            source = colour(source, SOURCE, batch.generators)
        joint = normalise(torch.cat([source, target]), preprocessing)
        outputs = model(
            joint.contiguous(memory_format=torch.channels_last), aux=True, upsample=False
        )
        weights = self.weights.to(target)
        ours, theirs = [], []
        for head in outputs.heads():
            a, b = (upsample(z, size) for z in head.float().contiguous().chunk(2))
            ours.append(cross_entropy_map(a, batch.source_label, weights).mean())
            loss = cross_entropy_map(b, label)
            weight, gamma = settings.focal_weight, settings.gamma
            theirs.append(focal_cross_entropy(loss, label != IGNORE, weight, gamma))
        terms = {"supervised": model.weigh(ours), "patches": model.weigh(theirs)}
        return Losses(terms, {"labelled": (label != IGNORE).float().mean()})


LSE = register_method(
    MethodType("lse", LseSettings, title="scale-invariant examples", label="LSE", stream=7, place=9)
)
"""Its rounds, in which patches are cut and learned from, are in `edgeuda.training.rounds`."""
