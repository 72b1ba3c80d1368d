"""Learning from a teacher: labels, weights, the large student, what a checkpoint brings back."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from edgeuda.methods.base import Batch
from edgeuda.methods.distil import (
    Distil,
    DistilSettings,
    LargeStudent,
    Lesson,
    hide,
    losses_of,
    paste,
)
from edgeuda.methods.teacher import Teacher
from edgeuda.models.bisenet import BiSeNet
from edgeuda.spec import Preprocessing
from edgeuda.training.loader import position_generator

K, H, W = 4, 64, 96
PRE = Preprocessing(H, W)
PLAN = {"steps": 4, "batch": 2, "lr": 1e-3, "batch_norm": "frozen"}
ALONE = DistilSettings(**PLAN, source_weight=0.0, mix=0.0, alone=1.0, disagreement=0.0)


def network(seed=0, width=0.125):
    torch.manual_seed(seed)
    return BiSeNet(K, width)


def batch(step=0, count=2):
    generator = torch.Generator().manual_seed(1)
    source, target = torch.rand(2, count, 3, H, W, generator=generator)
    label = torch.randint(0, K, (count, H, W), generator=generator)
    label[:, :4] = 255
    return Batch(
        step, source, label, target, None, None,
        [position_generator(0, position) for position in range(count)], ("a",) * 2 * count,
    )  # fmt: skip


def method(settings, student, steps=4, large=None, decay=1.0):
    teacher = large.teacher if large is not None else Teacher(student, decay)
    return Distil(settings, torch.ones(K), teacher, PRE, steps, large)


def large_student(seed=5):
    model = network(seed, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return LargeStudent(model, PRE, Teacher(model, 0.5), optimizer, "frozen", half=False)


def lesson_of(**changes):
    torch.manual_seed(3)
    fields = {
        "source": None,
        "source_label": torch.zeros(2, H, W, dtype=torch.int64),
        "target": torch.rand(2, 3, H, W),
        "probability": torch.rand(2, K, H, W).softmax(1),
        "weight": torch.rand(2, H, W),
    }
    return Lesson(**fields | changes)


def test_loss_is_the_weighted_soft_cross_entropy_over_the_heads():
    model, lesson = network().eval(), lesson_of()
    terms, logits = losses_of(model, lesson, torch.ones(K), PRE, "frozen")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PRE.mean, PRE.std))
    outputs = model((lesson.target - mean) / std, aux=True)
    by_head = [
        (lesson.weight * (lesson.probability * -F.log_softmax(z, 1)).sum(1)).mean()
        for z in outputs.heads()
    ]
    assert set(terms) == {"distil"}
    assert torch.allclose(terms["distil"], sum(by_head) / 3, atol=1e-4)
    assert torch.allclose(logits, outputs.main, atol=1e-3)


def test_one_hot_labels_give_the_plain_cross_entropy():
    model = network().eval()
    label = torch.randint(0, K, (2, H, W), generator=torch.Generator().manual_seed(0))
    hard = F.one_hot(label, K).permute(0, 3, 1, 2).float()
    lesson = lesson_of(probability=hard, weight=torch.ones(2, H, W))
    terms, _logits = losses_of(model, lesson, torch.ones(K), PRE, "frozen")
    heads = model((lesson.target - torch.tensor(PRE.mean).view(1, 3, 1, 1))
                  / torch.tensor(PRE.std).view(1, 3, 1, 1), aux=True).heads()  # fmt: skip
    wanted = sum(F.cross_entropy(z, label) for z in heads) / 3
    assert torch.allclose(terms["distil"], wanted, atol=1e-4)


def test_the_picture_of_a_step_is_the_image_and_the_labels_that_are_learned():
    student, given = network().eval(), batch()
    learning = method(DistilSettings(**PLAN, alone=0.0), student)
    images, labels = learning.step(student, given, PRE).pictures["mixed"]
    assert (images.shape, labels.shape) == (given.target.shape, given.source_label.shape)
    lesson, _ = learning._prepare(batch())
    assert torch.equal(images, lesson.target)
    assert torch.equal(labels, lesson.probability.argmax(1))


def test_pasting_takes_image_label_and_weight_of_the_source():
    given = batch()
    probability = torch.full((2, K, H, W), 1 / K)
    weight = torch.full((2, H, W), 0.3)
    images, labels, weights = paste(
        given.source, given.source_label, given.target, probability, weight, 1.0, given.generators
    )
    pasted = weights == 1
    assert 0 < pasted.float().mean() < 1
    assert not (pasted & (given.source_label == 255)).any()
    assert torch.equal(labels.argmax(1)[pasted], given.source_label[pasted])
    mask = pasted[:, None].expand_as(images)
    assert torch.equal(images[mask], given.source[mask])
    assert torch.equal(images[~mask], given.target[~mask])
    assert torch.equal(labels[:, 0][~pasted], probability[:, 0][~pasted])


def test_no_image_is_mixed_at_share_zero():
    given = batch()
    probability, weight = torch.full((2, K, H, W), 1 / K), torch.ones(2, H, W)
    images, *_ = paste(
        given.source, given.source_label, given.target, probability, weight, 0.0, given.generators
    )
    assert torch.equal(images, given.target)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_hidden_blocks_have_the_mean_colour_and_the_wanted_share(share):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 64, 96)
    result = hide(images, share, 8, [position_generator(1, n) for n in range(8)])
    changed = (result != images).any(1)
    blocks = changed.view(8, 8, 8, 12, 8).float().mean((2, 4))
    assert set(blocks.unique().tolist()) <= {0.0, 1.0}
    assert abs(float(changed.float().mean()) - share) < 0.08
    first = changed[0].nonzero()[0]
    assert torch.allclose(result[0, :, first[0], first[1]], images[0].mean((1, 2)))


@pytest.mark.parametrize("side", [64, 90])
def test_blocks_that_do_not_fit_are_cut(side):
    assert hide(torch.rand(1, 3, side, 96), 0.5, 32, [position_generator(0, 0)]).shape[2] == side


def test_a_student_follows_a_frozen_teacher():
    """On images alone, without any label, it comes to agree with its teacher."""
    teacher, student = network(1).eval(), network(2).eval()
    for module in teacher.modules():  # a teacher with an opinion
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=2.0)
    learning = Distil(ALONE, torch.ones(K), Teacher(teacher), PRE, 30)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    agreement = []
    for step in range(30):
        losses = learning.step(student, batch(step), PRE)
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
        learning.after_step(student)
        agreement.append(float(losses.figures["agreement"]))
    assert agreement[-1] > max(0.8, agreement[0])


def test_temperature_softens_and_hard_labels_do_not():
    student = network().eval()
    plain, soft, hard = (
        method(settings, student)._prepare(batch())[0].probability
        for settings in (
            ALONE,
            DistilSettings(**vars(ALONE) | {"temperature": 4.0}),
            DistilSettings(**vars(ALONE) | {"hard": True}),
        )
    )
    assert torch.allclose((plain.clamp(min=1e-8).log() / 4).softmax(1), soft, atol=1e-5)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.argmax(1), plain.argmax(1))


def test_source_is_seen_in_the_joint_steps_only():
    settings = DistilSettings(**PLAN, alone=0.5)
    student = network().eval()
    learning = method(settings, student, steps=4)
    terms = [set(learning.step(student, batch(step), PRE).terms) for step in range(4)]
    assert terms == [{"supervised", "distil"}] * 2 + [{"distil"}] * 2


def test_classes_on_which_both_disagree_weigh_more():
    student = network().eval()
    settings = DistilSettings(**vars(ALONE) | {"disagreement": 3.0})
    learning = method(settings, student)
    learning.overlap = torch.tensor([1.0, 1.0, 1.0, 0.0])
    label = learning._prepare(batch())[0].probability.argmax(1)
    assert 0 < (label == 3).float().mean() < 1
    seen = {}
    model_losses = losses_of

    def spy(model, lesson, *rest):
        seen["weight"] = lesson.weight
        return model_losses(model, lesson, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeuda.methods.distil.losses_of", spy)
        learning.step(student, batch(), PRE)
    rare, rest = seen["weight"][label == 3].mean(), seen["weight"][label != 3].mean()
    assert torch.isclose(rare / rest, torch.tensor(4.0), rtol=1e-4)
    assert torch.isclose(seen["weight"].mean(), torch.tensor(1.0), rtol=1e-4)


def test_the_large_student_learns_beside_and_its_average_teaches():
    student, large = network().eval(), large_student()
    settings = DistilSettings(**PLAN, alone=0.5)
    learning = method(settings, student, 4, large)
    states = [copy.deepcopy(large.model.state_dict())]
    for step in range(4):
        learning.step(student, batch(step), PRE).total().backward()
        learning.after_step(student)
        states.append(copy.deepcopy(large.model.state_dict()))
    key = "main.classifier.weight"
    moved = [not torch.equal(a[key], b[key]) for a, b in itertools.pairwise(states)]
    assert moved == [True, True, False, False]  # alone: the small one only
    wanted = states[0][key]
    for state in states[1:3]:
        wanted = wanted + 0.5 * (state[key] - wanted)
    assert torch.allclose(large.teacher.model.state_dict()[key], wanted, atol=1e-6)


def test_a_checkpoint_brings_back_the_whole_method():
    settings = DistilSettings(**PLAN, alone=0.0)
    student = network().eval()
    learning = method(settings, student, 4, large_student())
    learning.step(student, batch(0), PRE)
    learning.after_step(student)
    again = method(settings, student, 4, large_student(9))
    again.load_state(copy.deepcopy(learning.state()))
    first, second = (m.step(student, batch(1), PRE).total() for m in (learning, again))
    assert torch.equal(first, second)
    for one in (learning, again):
        one.after_step(student)
    ours, theirs = (m.state()["large"] for m in (learning, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_teacher_that_follows_the_student_is_its_average():
    student = network().eval()
    learning = method(ALONE, student, decay=0.9)
    before = copy.deepcopy(student.main.classifier.weight)
    with torch.no_grad():
        student.main.classifier.weight += 1.0
    learning.after_step(student)
    found = learning.teacher.model.main.classifier.weight
    assert torch.allclose(found, before + 0.1, atol=1e-6)
    assert "teacher.main.classifier.weight" in learning.state()
