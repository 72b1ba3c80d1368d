"""Cross-domain image mixing."""

import torch

from edgeuda.methods.mixing import TRUSTED, draw_class_mask, mix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mask_holds_half_of_the_classes_rounded_up_and_never_ignore():
    label = torch.tensor([[[0, 0, 1], [2, 3, 255], [4, 4, 255]]])
    seen = set()
    for seed in range(30):
        mask = draw_class_mask(label, generator(seed))
        drawn = set(label[mask].tolist())
        assert len(drawn) == 3  # ceil(5 / 2)
        assert 255 not in drawn
        for c in range(5):  # a class is taken whole or not at all
            part = mask[label == c]
            assert part.all() or not part.any()
        seen |= drawn
    assert seen == {0, 1, 2, 3, 4}


def test_mask_of_an_unlabelled_image_is_empty():
    assert not draw_class_mask(torch.full((1, 2, 2), 255), generator()).any()


def test_weight_is_one_on_source_and_the_trusted_share_elsewhere():
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[0, 0] = True
    probability = torch.zeros(1, 3, 2, 4)
    probability[:, 1] = torch.tensor([TRUSTED, 0.99, 0.5, 0.9])
    probability[:, 2] = 1 - probability[:, 1]
    source, target = torch.ones(1, 3, 2, 4), torch.zeros(1, 3, 2, 4)
    image, label, weight = mix(mask, source, torch.zeros(1, 2, 4).long(), target, probability)
    assert (image[:, :, 0] == 1).all()
    assert (image[:, :, 1] == 0).all()
    assert (label[0, 0] == 0).all()
    assert label[0, 1].tolist() == [1, 1, 1, 1]  # ties and doubt still get a label
    assert (weight[0, 0] == 1).all()
    assert (weight[0, 1] == 0.5).all()  # 2 of 4 columns reach the trust level
