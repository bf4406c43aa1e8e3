"""The map's mechanism on a hand-made network of a few tensors."""

import pytest
import torch

from ivt2.checkpoint.keymaps.keymap import KeyMap, tensor_facts
from ivt2.checkpoint.keymaps.rules import Axis, Copy, Dialect, Drop, Positions, Section
from ivt2.errors import InputError

MAP = KeyMap(
    name="toy",
    version=1,
    sections=(Section("text.", "bert.", ((r"\.fc1", ".dense"),)), Section("", "", ((r"^temperature$", "temp"),))),
    resized=r"table",
    axes=(Axis(r"temperature$", 0, ours=True), Axis(r"kernel$", 2, ours=True, optional=True)),
    drops=(Drop(r"teacher\.", "the teacher is not part of the network"), Drop(r"kernel", "no kernel in this network")),
    copies=(
        Copy(r"bert\.bias", r"bert.decoder.bias", r"bert.bias"),
        Copy(r"bert\.bias", r"bert.decoder.weight", r"bert.words.weight"),
    ),
    positions=(Positions(r"bert\.places\.weight", "bert.position_ids"),),
    dialects=(Dialect(((r"^bert\.", ""),)), Dialect(((r"dense\.weight$", "dense.gamma"),))),
)


def network():
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "table": (1, 5, 3),
        "kernel": (3, 2, 1, 2, 2),
        "temperature": (1,),
        "text.words.weight": (7, 3),
        "text.places.weight": (4, 3),
        "text.layer.fc1.weight": (3, 3),
        "text.bias": (7,),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | {"text.count": torch.tensor(3)}


def written():
    return dict(MAP.write(network()))


def read(file, key_map=MAP, ours=None):
    plan = key_map.plan(tensor_facts(ours or network()), tensor_facts(file), source="toy.pt")
    plan.check(file.__getitem__)
    return plan, {name: plan.read(name, file.__getitem__) for name in plan.names}


def refusal(file, key_map=MAP):
    with pytest.raises(InputError) as caught:
        read(file, key_map)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("toy.pt: ")
    return str(caught.value)


def test_writes_the_reference_layout():
    file = written()
    assert {key: list(value.shape) for key, value in file.items()} == {
        "table": [1, 5, 3],
        "kernel": [3, 2, 2, 2],
        "temp": [],
        "bert.words.weight": [7, 3],
        "bert.places.weight": [4, 3],
        "bert.layer.dense.weight": [3, 3],
        "bert.bias": [7],
        "bert.count": [],
        "bert.decoder.bias": [7],
        "bert.decoder.weight": [7, 3],
        "bert.position_ids": [1, 4],
    }
    assert file["bert.position_ids"].tolist() == [[0, 1, 2, 3]]


def test_round_trip_keeps_every_bit():
    plan, state = read(written())
    expected = network()
    assert list(state) == list(expected) == list(plan.names)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert plan.dropped == {}
    assert plan.resized == ()


def test_names_what_it_drops():
    plan, _ = read(written() | {"teacher.weight": torch.zeros(2)})
    assert plan.dropped == {"teacher.weight": "the teacher is not part of the network"}


def test_drops_nothing_of_a_part_that_the_network_has():
    assert "0 missing; 1 unexpected (kernel2)" in refusal(written() | {"kernel2": torch.zeros(2)})


def test_gives_tables_of_another_length_to_the_caller():
    plan, state = read(written() | {"table": torch.zeros(1, 9, 3)})
    assert plan.resized == ("table",)
    assert state["table"].shape == (1, 9, 3)
    assert "1 of another shape (table [1, 9, 4] here [1, 5, 3])" in refusal(written() | {"table": torch.zeros(1, 9, 4)})


def test_reads_both_forms_where_both_exist():
    file = written()
    _, state = read(file | {"kernel": file["kernel"].unsqueeze(2)})
    assert torch.equal(state["kernel"], network()["kernel"])
    assert "(temp [1] here [])" in refusal(file | {"temp": torch.ones(1)})


def respell(file, old, new):
    return {key.replace(old, new): value for key, value in file.items()}


@pytest.mark.parametrize(
    "file",
    [
        {f"module.{key}": value for key, value in written().items()},
        {f"model.module.{key}": value for key, value in written().items()},
        respell(written(), "bert.", ""),
        respell(written(), "dense.weight", "dense.gamma"),
        {
            f"module.{key}": value
            for key, value in respell(respell(written(), "bert.", ""), "dense.w", "dense.w").items()
        },
        {key: value for key, value in written().items() if "decoder" not in key},
        {key: value for key, value in written().items() if "position_ids" not in key},
    ],
)
def test_other_spellings_read_the_same(file):
    _, state = read(file)
    assert all(torch.equal(state[name], value) for name, value in network().items())


def test_a_mixture_of_spellings_is_refused():
    message = refusal(respell(written(), "bert.words", "words"))
    assert "1 missing (bert.words.weight); 1 unexpected (words.weight); 0 of another shape" in message


def test_three_lists_and_the_map_are_named():
    file = written()
    del file["bert.words.weight"]
    message = refusal(file | {f"extra{i}": torch.zeros(1) for i in range(5)} | {"bert.bias": torch.zeros(2)})
    assert message.startswith("toy.pt: does not fit toy (version 1 of its key map): 1 missing (bert.words.weight)")
    assert "5 unexpected (extra0, extra1, extra2, and 2 more)" in message
    assert "1 of another shape (bert.bias [2] here [7])" in message


def test_some_copies_without_the_others_are_missing():
    file = written()
    del file["bert.decoder.weight"]
    assert "1 missing (bert.decoder.weight)" in refusal(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert.decoder.bias": torch.zeros(7)}, "bert.decoder.bias must repeat bert.bias and does not"),
        ({"bert.position_ids": torch.tensor([[0, 1, 2, 2]])}, "bert.position_ids must hold 0 to 3 in order"),
        ({"bert.position_ids": torch.arange(5).unsqueeze(0)}, "(bert.position_ids [1, 5] here [1, 4])"),
        ({"bert.position_ids": torch.arange(4.0).unsqueeze(0)}, "bert.position_ids is float32, it must hold integers"),
        ({"bert.count": torch.tensor(3.0)}, "bert.count is float32, it must hold integers"),
        ({"temp": torch.tensor(1)}, "are 1 int64 (temp); 8 float32 (table, kernel, bert.words.weight, and 5 more)"),
        ({"temp": torch.tensor(1.0).half()}, "are 1 float16 (temp); 8 float32"),
        ({"bert.decoder.bias": network()["text.bias"].bfloat16()}, "are 1 bfloat16 (bert.decoder.bias); 8 float32"),
    ],
)
def test_wrong_content_is_refused(change, message):
    assert message in refusal(written() | change)


def test_other_dtypes_are_refused_and_half_ones_are_not():
    file = written()
    for dtype in (torch.float16, torch.bfloat16):
        _, state = read({key: value.to(dtype) if value.is_floating_point() else value for key, value in file.items()})
        assert state["table"].dtype == dtype
    doubled = {key: value.double() if value.is_floating_point() else value for key, value in file.items()}
    assert "are 9 float64 (table, kernel, temp, and 6 more)" in refusal(doubled)


def test_gives_a_part_of_a_network_only():
    part = KeyMap(name="part", version=1, provides=r"text\.places|text\.words", sections=(Section("text.", ""),))
    ours = {f"net.{name}": value for name, value in network().items()} | {"text.places.weight": torch.zeros(1)}
    file = dict(part.under("net.").write(ours))
    assert list(file) == ["words.weight", "places.weight"]
    plan, state = read(file, part.under("net."), ours)
    assert plan.names == ("net.text.words.weight", "net.text.places.weight")
    assert torch.equal(state["net.text.words.weight"], network()["text.words.weight"])


def test_two_names_for_one_key_are_a_defect():
    with pytest.raises(ValueError, match="same reference key"):
        dict(
            KeyMap(name="bad", version=1, sections=(Section("", "", (("[ab]", "c"),)),)).write({
                "a": torch.zeros(1),
                "b": torch.zeros(1),
            })
        )
    with pytest.raises(ValueError, match="no section for x"):
        KeyMap(name="bad", version=1, sections=(Section("a."),)).to_reference("x")
