import pytest
import torch

from ivt2.checkpoint.keymaps.keymap import tensor_facts
from ivt2.checkpoint.zoo import NUM_PARAMETERS, RELEASES, TOKENIZERS, convert_command, find, page_of
from ivt2.errors import InputError

STATED = {  # spec stage1 appendix A and stage2 key inventories
    "internvideo2-1b-stage1": 1_070_042_752,
    "internvideo2-s14-distilled": 29_169_792,
    "internvideo2-b14-distilled": 102_252_288,
    "internvideo2-l14-distilled": 327_183_872,
    "internvideo2-1b-k400-f8": 1_021_017_744,
    "internvideo2-1b-k710-f8": 1_021_256_134,
    "internvideo2-s14-k400-f8": 23_352_976,
    "internvideo2-b14-k400-f8": 89_748_112,
    "internvideo2-l14-k400-f8": 309_238_416,
    "internvideo2-1b-stage2": 1_410_146_493,
    "internvideo2-6b-stage2-audio": 6_453_900_079,
    "internvideo2-clip-1b": 7_713_126_145,
    "internvideo2-clip-6b": 12_634_152_705,
    "internvideo2-clip-s14": 86_867_201,
    "internvideo2-clip-b14": 153_262_337,
    "internvideo2-clip-l14": 372_752_641,
    "internvideo2-6b-audio-encoder": 90_311_792,
    "internvl-c-6b-vision": 5_936_000_768,
    "videomae-v2-g": 1_011_610_752,
    "mobileclip-b-text": 63_428_096,
}


@pytest.fixture(scope="module")
def networks():
    with torch.device("meta"):
        return {name: release.build(release.num_frames, release.image_size) for name, release in RELEASES.items()}


@pytest.mark.slow
def test_networks_are_as_large_as_the_published_ones(networks):
    counts = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    assert counts == dict(NUM_PARAMETERS)
    assert {name: counts[name] for name in STATED} == STATED


def provided(part, network):
    """Our names that a file of the part's kind gives."""
    state = tensor_facts(network.state_dict())
    file = tensor_facts(dict(part.key_map.write(network.state_dict())))
    plan = part.key_map.plan(state, file, source="file")
    assert not plan.resized
    return plan.names


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASES)
def test_the_parts_together_give_every_weight(networks, name):
    network = networks[name]
    assert {ours for part in RELEASES[name].parts for ours in provided(part, network)} == set(network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("size", ["s14", "b14", "l14", "1b", "6b"])
def test_the_stated_size_of_a_clip_delta(networks, size):
    release, network = RELEASES[f"internvideo2-clip-{size}"], networks[f"internvideo2-clip-{size}"]
    state = network.state_dict()
    count = sum(state[name].numel() for name in provided(release.parts[-1], network))
    assert f"{count / 1e6:.1f} M weights on top" in release.title
    assert count == {"s14": 1_136_769, "b14": 2_762_241, "l14": 4_337_409, "1b": 7_042_177, "6b": 33_207_169}[size]


def test_facts_are_consistent():
    assert len({release.title for release in RELEASES.values()}) == len(RELEASES)
    for name, release in RELEASES.items():
        assert release.name == name
        assert ("text" in release.modalities) == (release.tokenizer in TOKENIZERS)
        assert ("audio" in release.modalities) == (release.num_mels is not None)
        assert len({part.name for part in release.parts}) == len(release.parts)
        for part in release.parts:
            assert part.file
            assert part.licence
            assert page_of(part.source).startswith("https://")
            assert part.source.count("/") == 1 or "://" in part.source


def test_no_file_serves_two_releases_of_the_same_kind():
    """A wrong link in a list of files would show here: K600's once pointed at K400's."""
    files = [
        (part.key_map.name, part.source, part.file) for release in RELEASES.values() for part in release.parts
        if len(release.parts) == 1
    ]  # fmt: skip
    assert len(set(files)) == len(files)


def test_what_does_not_exist_is_not_listed():
    absent = ("1b-k600-f8", "b14-ssv2-f8", "l14-k710-f8", "6b-stage1", "6b-k400-f8")
    assert not [name for name in absent if f"internvideo2-{name}" in RELEASES]


def test_releases_are_found_by_name():
    assert find("internvideo2-clip-1b") is RELEASES["internvideo2-clip-1b"]
    with pytest.raises(InputError, match=r"internvideo2-clip-1B: no such release; did you mean internvideo2-clip-1b"):
        find("internvideo2-clip-1B")
    with pytest.raises(InputError, match=r"^\?: no such release; python -m ivt2\.cli\.zoo lists all"):
        find("?")


def test_the_command_names_every_part():
    command = convert_command(RELEASES["internvideo2-clip-s14"], "out")
    assert command == (
        "python -m ivt2.cli.convert release=internvideo2-clip-s14 files.vision=<vision file> files.text=<text file> "
        "files.delta=<delta file> output=out"
    )
