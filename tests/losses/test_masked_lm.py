import math

import pytest
import torch

from ivt2.errors import InputError
from ivt2.losses.masked_lm import MaskDraws, mask_tokens, masked_lm_loss

IDS = {"vocab_size": 100, "mask_id": 3, "pad_id": 0, "cls_id": 1}


def many(batch=400, length=50):
    """Texts of start token, words, separator (2) and padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, 100, (batch, length), generator=generator)
    input_ids[:, 0] = 1
    input_ids[:, length - 10] = 2
    input_ids[:, length - 9 :] = 0
    return input_ids, MaskDraws.from_uniform(torch.rand(batch, 4 * length, generator=generator))


def test_each_draw_decides_what_it_says():
    input_ids = torch.tensor([[1, 50, 51, 52, 53, 54, 2, 0]])
    draws = MaskDraws(
        selected=torch.tensor([[0.0, 0.5, 0.49, 0.0, 0.0, 0.0, 0.0, 0.0]]),
        replaced=torch.tensor([[0.0, 0.0, 0.79, 0.8, 0.8, 0.8, 0.0, 0.0]]),
        randomised=torch.tensor([[0.0, 0.0, 0.00, 0.49, 0.5, 0.0, 0.0, 0.0]]),
        random_id=torch.tensor([[0.0, 0.0, 0.00, 0.07, 0.0, 0.999, 0.0, 0.0]]),
    )
    corrupted, labels = mask_tokens(input_ids, draws, **IDS)
    assert corrupted.tolist() == [[1, 50, 3, 7, 53, 99, 3, 0]]
    assert labels.tolist() == [[-100, -100, 51, 52, 53, 54, 2, -100]]


def test_shares():
    input_ids, draws = many()
    corrupted, labels = mask_tokens(input_ids, draws, **IDS)
    maskable = (input_ids != 0) & (input_ids != 1)
    selected = labels != -100
    assert not (selected & ~maskable).any()
    assert torch.equal(corrupted[~selected], input_ids[~selected])
    assert torch.equal(labels[selected], input_ids[selected])
    share = selected.sum() / maskable.sum()
    assert share.item() == pytest.approx(0.5, abs=0.02)
    assert (corrupted[selected] == 3).float().mean().item() == pytest.approx(0.8 + 0.1 / 100, abs=0.02)
    assert (corrupted[selected] == input_ids[selected]).float().mean().item() == pytest.approx(0.1, abs=0.015)


def test_separator_can_be_masked():
    input_ids, draws = many()
    _, labels = mask_tokens(input_ids, draws, **IDS)
    assert (labels[input_ids == 2] == 2).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_probability():
    input_ids, draws = many()
    assert (mask_tokens(input_ids, draws, **IDS, probability=0.0)[1] == -100).all()
    everything = mask_tokens(input_ids, draws, **IDS, probability=1.0)[1]
    assert torch.equal(everything != -100, input_ids > 1)


def test_random_ids_stay_in_the_vocabulary():
    largest = torch.full((1, 1), 1 - 2**-24)
    draws = MaskDraws(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1), largest)
    for vocab_size in (30522, 2**20):
        corrupted, _ = mask_tokens(torch.tensor([[5]]), draws, **IDS | {"vocab_size": vocab_size})
        assert corrupted.item() == vocab_size - 1


def test_input_is_left_alone():
    input_ids, draws = many()
    before = input_ids.clone()
    mask_tokens(input_ids, draws, **IDS)
    assert torch.equal(input_ids, before)


def test_from_uniform_does_not_depend_on_padding():
    noise = torch.rand(2, 40)
    long, short = MaskDraws.from_uniform(noise), MaskDraws.from_uniform(noise[:, :12])
    for of_long, of_short in zip(long, short, strict=True):
        assert of_long.shape == (2, 10)
        assert torch.equal(of_long[:, :3], of_short)
    assert torch.equal(torch.stack(list(long), dim=-1).flatten(1), noise)
    with pytest.raises(ValueError, match="multiple of 4"):
        MaskDraws.from_uniform(noise[:, :10])


def test_uniform_logits_give_log_of_vocabulary():
    labels = torch.tensor([[-100, 4, 7], [9, -100, -100]])
    total, count = masked_lm_loss(torch.zeros(2, 3, 50), labels)
    assert count.item() == 3
    assert (total / count).item() == pytest.approx(math.log(50))


def test_loss_agrees_with_a_loop():
    logits = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, :3] = -100
    expected = 0.0
    for row, label in zip(logits.flatten(0, 1).tolist(), labels.flatten().tolist(), strict=True):
        if label != -100:
            expected += math.log(sum(math.exp(score) for score in row)) - row[label]
    total, count = masked_lm_loss(logits, labels)
    assert (total.item(), count.item()) == (pytest.approx(expected, rel=1e-5), 12)
    chosen = labels != -100
    selected, _ = masked_lm_loss(logits[chosen], labels[chosen])
    assert selected.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_nothing_to_predict_gives_zero_with_graph(shape):
    logits = torch.randn(*shape, 5, requires_grad=True)
    total, count = masked_lm_loss(logits, torch.full(shape, -100))
    assert (total.item(), count.item()) == (0.0, 0)
    total.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 4000, 5, dtype=torch.bfloat16)
    total, count = masked_lm_loss(logits, torch.zeros(1, 4000, dtype=torch.int64))
    assert total.dtype == torch.float32
    assert (total / count).item() == pytest.approx(math.log(5), rel=1e-5)


def test_a_tokenizer_without_a_mask_token_is_refused():
    input_ids, draws = many(2)
    with pytest.raises(InputError, match="no mask token"):
        mask_tokens(input_ids, draws, **IDS | {"mask_id": -1})
