"""Releases as small as they can be, published as files of the reference's kind, loaded through the front door."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hydra.utils import instantiate
from PIL import Image
from torch.nn.functional import normalize

import ivt2
from ivt2 import hub
from ivt2.checkpoint import save_checkpoint, zoo
from ivt2.checkpoint.convert import convert
from ivt2.checkpoint.keymaps import audio, clip, stage1, stage2, text
from ivt2.checkpoint.release import Part, Release
from ivt2.checkpoint.trained import AUTOENCODER
from ivt2.data.inputs import AudioTransform, ClipTransform
from ivt2.data.synthetic import VOCABULARY_FILE
from ivt2.data.text import normalize_caption
from ivt2.data.tokenizer import WordPieceTokenizer, train_vocabulary
from ivt2.data.tokenizer_clip import ClipTokenizer
from ivt2.errors import InputError
from ivt2.models.beats import Beats
from ivt2.models.bert import Bert
from ivt2.models.clip import ClipModel
from ivt2.models.features import video_features
from ivt2.models.heads import ClassificationHead, VideoClassifier
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage2 import Stage2Model
from ivt2.models.stage2_audio import Stage2AudioVisualModel
from ivt2.models.videomae import VideoMAE
from ivt2.ops.position import resize_position_table
from tests.data.clips import encode, picture, tone, wav

COMMIT = "0123456789abcdef" * 2 + "01234567"
CAPTIONS = ["A red dog runs.", "the cat sleeps", "two dogs, one cat!"]
SIDE = 28


def encoder(frames, side, **options):
    return InternVideo2(
        image_size=side, patch_size=14, num_frames=frames, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0,
        pool_num_heads=2, pooled_dim=16, layer_scale_init=0.5, **options,
    )  # fmt: skip


def bert(encoder_width, fusion_layer=2):
    return Bert(
        vocab_size=130, embed_dim=32, depth=3, num_heads=2, mlp_dim=64, max_positions=48, fusion_layer=fusion_layer,
        encoder_width=encoder_width, masked_lm=True,
    )  # fmt: skip


def beats():
    return Beats(embed_dim=32, depth=1, num_heads=2, mlp_dim=32, patch_dim=16, position_kernel=8, position_groups=2)


def build_stage2(frames, side):
    return Stage2Model(encoder(frames, side, separate_image_position=True), bert(32), contrastive_dim=12)


def build_audio_visual(frames, side):
    return Stage2AudioVisualModel(encoder(frames, side), bert(24), beats(), contrastive_dim=12, fusion_dim=24)


def build_clip(frames, side):
    words = MobileClipText(vocab_size=516, context_length=77, embed_dim=16, depth=1, num_heads=2, projection_dim=12)
    return ClipModel(encoder(frames, side), words, vision_align=12)


def build_classifier(frames, side):
    return VideoClassifier(encoder(frames, side), ClassificationHead(pooled_dim=16, num_classes=5))


def release(name, build, parts, modalities, *, frames=4, **facts):
    parts = tuple(replace(one, source=one.source.replace("tiny", name)) for one in parts)
    return Release(
        name=name, title=name, build=build, parts=parts, modalities=modalities, num_frames=frames, image_size=SIDE,
        dim=12, **facts,
    )  # fmt: skip


def part(name, key_map, source="Example/tiny", num_frames=4):
    return Part(name, key_map, f"files/{name}.pt", source, "MIT", num_frames=num_frames)


TINY = {
    one.name: one
    for one in (
        release(
            "tiny-stage2", build_stage2, (part("model", stage2.VISUAL),), ("video", "image", "text"), tokenizer="bert"
        ),
        release(
            "tiny-audio", build_audio_visual, (part("model", stage2.AUDIO_VISUAL),), ("video", "audio", "text"),
            tokenizer="bert", num_mels=64,
        ),
        release(
            "tiny-clip", build_clip,
            (
                part("vision", clip.VISION_FROM_DISTILLED),
                part("text", clip.TEXT_FROM_MOBILECLIP, "https://example.org/text", num_frames=None),
                part("delta", clip.DELTA_SMALL, "Example/delta", num_frames=None),
            ),
            ("video", "image", "text"), frames=8, tokenizer="clip",
        ),
        release("tiny-k5", build_classifier, (part("model", stage1.FINETUNED),), ("video",)),
        release(
            "tiny-beats", lambda _frames, _side: beats(), (part("model", audio.BEATS, num_frames=None),), ("audio",),
            num_mels=128,
        ),
        release(
            "tiny-bert", lambda _frames, _side: bert(32, 3), (part("model", text.BERT, num_frames=None),), ("text",),
            tokenizer="bert",
        ),
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_zoo(monkeypatch):
    monkeypatch.setattr(zoo, "RELEASES", TINY)
    monkeypatch.setattr(zoo, "TOKENIZERS", zoo.TOKENIZERS | {"bert": zoo.TokenizerFile("vocab.txt", "Example/words")})


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A hub that is a folder; returns a function that publishes a network as a part's file and gives the file."""
    root = tmp_path / "hub"
    asked = []

    def download(repo_id, filename, *, revision=None, cache_dir=None, local_files_only=False):
        asked.append((repo_id, filename, revision, local_files_only))
        path = root / repo_id / "snapshots" / COMMIT / filename
        if not path.is_file():
            raise LocalEntryNotFoundError("not here")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    def publish(part, network):
        where = root / part.source if "://" not in part.source else root / "elsewhere"
        path = where / "snapshots" / COMMIT / part.file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(part.key_map.write(network.state_dict())), path)
        return path

    publish.asked = asked
    publish.root = root
    return publish


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    train_vocabulary([normalize_caption(caption) for caption in CAPTIONS], 130, path)
    return path


def network(name):
    torch.manual_seed(0)
    one = zoo.RELEASES[name]
    built = one.build(one.num_frames, one.image_size).eval()
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return built


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(num_frames=9, height=48, width=64))
    return [tmp_path / "a.mp4", encode(num_frames=3, height=64, width=48), np.stack([picture(n) for n in range(20)])]


def test_a_name_is_downloaded_converted_kept_and_equal_to_the_network_by_hand(published, vocabulary, clips, tmp_path):
    judge = network("tiny-stage2")
    published(TINY["tiny-stage2"].parts[0], judge)
    words = published.root / "Example/words/snapshots" / COMMIT / "vocab.txt"
    words.parent.mkdir(parents=True)
    shutil.copyfile(vocabulary, words)

    loaded = ivt2.load("tiny-stage2", cache_dir=tmp_path / "cache")
    model, transform, tokenizer = loaded
    assert not model.training
    assert all(torch.equal(weight, judge.state_dict()[name]) for name, weight in model.state_dict().items())

    video = torch.stack([ClipTransform(4, SIDE)(source) for source in clips])
    assert torch.equal(torch.stack([transform(source) for source in clips]), video)
    ids, valid = WordPieceTokenizer(vocabulary, max_length=hub.BERT_LENGTH)([normalize_caption(c) for c in CAPTIONS])
    assert torch.equal(tokenizer([normalize_caption(c) for c in CAPTIONS])[0], ids)
    with torch.no_grad():
        of_videos = judge.embed_video(judge.encode_video(video))
        of_texts = judge.embed_text(judge.encode_text(ids, valid))
    torch.testing.assert_close(loaded.encode_video(clips), of_videos)
    torch.testing.assert_close(loaded.encode_text(CAPTIONS), of_texts)
    torch.testing.assert_close(loaded.similarity(of_videos * 3, of_texts), of_videos @ of_texts.T)

    parents = json.loads((loaded.folder / "metadata.json").read_text())["parents"]
    assert [parent["source"] for parent in parents] == [f"Example/tiny-stage2@{COMMIT}"]
    published.asked.clear()
    shutil.rmtree(published.root)
    again = ivt2.load("tiny-stage2", cache_dir=tmp_path / "cache")
    assert not published.asked
    assert torch.equal(again.encode_text(CAPTIONS), loaded.encode_text(CAPTIONS))


def test_features_stand_in_the_order_of_what_was_given(published, clips, tmp_path):
    published(TINY["tiny-stage2"].parts[0], network("tiny-stage2"))
    loaded = ivt2.load("tiny-stage2", cache_dir=tmp_path)
    items = [clips[0], Image.fromarray(picture(3)), clips[1], picture(5), clips[2]]
    rows = loaded.encode_video(items, batch_size=3)
    assert rows.shape == (5, 12)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(5))
    for row, item in zip(rows, items, strict=True):
        torch.testing.assert_close(loaded.encode_video(item), row[None])
    assert loaded.encode_video([]).shape == (0, 12)


def test_more_frames_and_pixels_resize_the_tables(published, clips, tmp_path):
    judge = network("tiny-stage2")
    published(TINY["tiny-stage2"].parts[0], judge)
    loaded = ivt2.load("tiny-stage2", num_frames=8, image_size=42, cache_dir=tmp_path)
    table = resize_position_table(judge.vision_encoder.pos_embed, source_frames=4, num_frames=8, grid_size=3)
    assert torch.equal(loaded.model.vision_encoder.pos_embed, table)
    assert loaded.transform(clips[0]).shape == (8, 3, 42, 42)
    assert loaded.encode_video(clips[0]).shape == (1, 12)


def test_half_precision_comes_close(published, vocabulary, clips, tmp_path):
    published(TINY["tiny-audio"].parts[0], network("tiny-audio"))
    full = ivt2.load("tiny-audio", cache_dir=tmp_path, tokenizer_file=vocabulary)
    half = ivt2.load("tiny-audio", cache_dir=tmp_path, tokenizer_file=vocabulary, dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    for rows, other in (
        (full.encode_video(clips), half.encode_video(clips)),
        (full.encode_text(CAPTIONS), half.encode_text(CAPTIONS)),
        (full.encode_audio((tone(1.0), 16_000)), half.encode_audio((tone(1.0), 16_000))),
    ):
        assert other.dtype == torch.float32
        assert (rows * other).sum(dim=-1).min() > 0.98


@pytest.mark.parametrize("name", ["tiny-audio", "tiny-beats"])
def test_sounds(published, name, tmp_path):
    judge = network(name)
    published(TINY[name].parts[0], judge)
    loaded = ivt2.load(name, cache_dir=tmp_path)
    sounds = [wav(tone(1.0)), (tone(2.0) / 2, 16_000)]
    rows = torch.stack([AudioTransform(TINY[name].num_mels)(sound) for sound in sounds])
    with torch.no_grad():
        features = judge.embed_audio(judge.encode_audio(rows)) if name == "tiny-audio" else judge(rows).tokens.mean(1)
    torch.testing.assert_close(loaded.encode_audio(sounds), normalize(features, dim=-1))
    torch.testing.assert_close(loaded.encode_audio(sounds[1]), normalize(features[1:], dim=-1))


def test_a_classifier_scores_and_gives_its_pooled_vector(published, clips, tmp_path):
    judge = network("tiny-k5")
    published(TINY["tiny-k5"].parts[0], judge)
    model, transform, tokenizer = loaded = ivt2.load("tiny-k5", cache_dir=tmp_path)
    assert tokenizer is None
    video = transform(clips[0])[None]
    with torch.no_grad():
        torch.testing.assert_close(model(video), judge(video))
        pooled = normalize(judge.encoder(video).pooled, dim=-1)
    torch.testing.assert_close(loaded.encode_video(clips[0]), pooled)


def test_a_text_encoder_alone(published, vocabulary, tmp_path):
    judge = network("tiny-bert")
    published(TINY["tiny-bert"].parts[0], judge)
    loaded = ivt2.load("tiny-bert", cache_dir=tmp_path, tokenizer_file=vocabulary)
    ids, valid = loaded.tokenizer(["a dog"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_text("A dog!"), normalize(judge.encode_text(ids, valid)[:, 0], dim=-1))


def test_parts_that_are_not_there_are_listed_with_what_to_do(published, vocabulary, clips, tmp_path):
    judge, one = network("tiny-clip"), TINY["tiny-clip"]
    vision = published(one.parts[0], replace_encoder(judge, one))
    cache = tmp_path / "cache"
    with pytest.raises(InputError) as caught:
        ivt2.load("tiny-clip", cache_dir=cache)
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "tiny-clip: 2 of 3 parts are missing:",
        "  text: files/text.pt (size not stated) from https://example.org/text",
        "  delta: files/delta.pt (size not stated) from https://huggingface.co/Example/delta",
    ]
    assert lines[4] == (
        f"  python -m ivt2.cli.convert release=tiny-clip files.vision={vision} files.text=<text file> "
        f"files.delta=<delta file> output={cache / 'tiny-clip'}"
    )
    assert all(local for *_, local in published.asked)
    assert not (cache / "tiny-clip").exists()

    files = {"vision": vision} | {part.name: published(part, judge) for part in one.parts[1:]}
    convert(one, files, cache / "tiny-clip")
    merges = tmp_path / "merges.txt"
    merges.write_text("#version: 0.2\nd o\ndo g</w>\n")
    loaded = ivt2.load("tiny-clip", cache_dir=cache, tokenizer_file=merges)
    with torch.no_grad():
        video = judge.encode_video(torch.stack([ClipTransform(8, SIDE)(source) for source in clips]))
        words = judge.encode_text(ClipTokenizer(merges)(["a red dog runs", "the cat sleeps"])[0])
    torch.testing.assert_close(loaded.encode_video(clips), video)
    torch.testing.assert_close(loaded.encode_text(CAPTIONS[:2]), words)


def replace_encoder(judge, one):
    """The network whose file is the base: 4 frames, of which ``judge`` gets the table for 8 and every other weight."""
    base = one.build(4, SIDE)
    state = judge.state_dict() | {"vision_encoder.pos_embed": base.vision_encoder.pos_embed.detach()}
    base.load_state_dict(state)
    table = resize_position_table(base.vision_encoder.pos_embed, source_frames=4, num_frames=8, grid_size=2)
    judge.vision_encoder.pos_embed = torch.nn.Parameter(table)
    return base


def test_without_a_connection_one_try_is_enough(published, tmp_path):
    one = replace(TINY["tiny-clip"], name="tiny-two", parts=tuple(
        replace(part, source="Example/far") for part in TINY["tiny-clip"].parts
    ))  # fmt: skip
    zoo.RELEASES = TINY | {"tiny-two": one}  # undone by small_zoo
    with pytest.raises(InputError, match=r"3 of 3 parts are missing:\n  vision: .*; the hub cannot be reached\n"):
        ivt2.load("tiny-two", cache_dir=tmp_path)
    assert [local for *_, local in published.asked] == [False, True, True]


def test_a_revision_is_that_of_the_last_part_and_kept_apart(published, tmp_path):
    published(TINY["tiny-k5"].parts[0], network("tiny-k5"))
    loaded = ivt2.load("tiny-k5", revision="refs/pr/1", cache_dir=tmp_path)
    assert published.asked[0][:3] == ("Example/tiny-k5", "files/model.pt", "refs/pr/1")
    assert loaded.folder == tmp_path / "tiny-k5@refs_pr_1"
    with pytest.raises(InputError, match="only releases that are loaded by name have revisions"):
        ivt2.load(loaded.folder, revision="main")


def test_a_folder_by_its_path(published, vocabulary, tmp_path):
    path = published(TINY["tiny-stage2"].parts[0], network("tiny-stage2"))
    folder = convert(TINY["tiny-stage2"], {"model": path}, tmp_path / "mine")
    assert ivt2.load(str(folder)).tokenizer is None
    with pytest.raises(InputError, match=r"tiny-stage2: no vocabulary.*get vocab.txt from .* put it into .*mine, or"):
        ivt2.load(folder).encode_text("a dog")
    shutil.copyfile(vocabulary, folder / "vocab.txt")
    assert ivt2.load(folder).encode_text("a dog").shape == (1, 12)
    assert not published.asked


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("tiny-stage", {}), "tiny-stage: no such release; did you mean tiny-stage2"),
        (("none/there", {}), "none/there: does not exist; give a release's name or a folder"),
        (("model.pt", {}), "model.pt: does not exist"),
        (("tiny-beats", {"num_frames": 8}), "num_frames=8: tiny-beats reads no video"),
        (("tiny-k5", {"image_size": 30}), "image_size=30 is not a multiple"),
        (("tiny-k5", {"image_size": 0}), "image_size=0: give a whole number of at least 1"),
        (("tiny-k5", {"num_frames": 0}), "num_frames=0: give a whole number of at least 1"),
        (("tiny-k5", {"dtype": torch.int64}), "dtype=torch.int64: choose one of torch.float32, torch.float16, torch.b"),
        (("tiny-k5", {"device": "gpu"}), "device=gpu: not usable here"),
        (("tiny-k5", {"device": "meta"}), "device=meta: not usable here"),
        (("", {}), "give a release's name or the path of a folder"),
        (("tiny-k5", {"tokenizer_file": "vocab.txt"}), "tiny-k5 has no text encoder"),
        (("tiny-stage2", {"tokenizer_file": "small.txt"}), "has 110 tokens, tiny-stage2 knows 130"),
    ],
)
def test_what_cannot_be_loaded(published, tmp_path, monkeypatch, asked, message):
    name, options = asked
    monkeypatch.chdir(tmp_path)
    train_vocabulary(["a dog"], 110, "small.txt")
    published(TINY["tiny-stage2"].parts[0], network("tiny-stage2"))
    with pytest.raises(InputError, match=message):
        ivt2.load(name, cache_dir=tmp_path, **options)


def test_a_file_of_weights_is_told_how_to_be_converted_with_its_base(published):
    commands = {
        ("tiny-k5", 0): "release=<release> files.model={} output=",  # many a file is called so
        ("tiny-clip", 2): "release=tiny-clip files.vision=<vision file> files.text=<text file> files.delta={} output=",
    }
    for (name, index), command in commands.items():
        path = published(TINY[name].parts[index], network(name))
        with pytest.raises(InputError) as caught:
            ivt2.load(path)
        assert f"{path}: is a file; convert it first: python -m ivt2.cli.convert {command.format(path)}" in str(
            caught.value
        )


def test_a_damaged_folder_is_not_loaded(published, tmp_path):
    published(TINY["tiny-k5"].parts[0], network("tiny-k5"))
    shard = next(ivt2.load("tiny-k5", cache_dir=tmp_path).folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        ivt2.load("tiny-k5", cache_dir=tmp_path)


def test_what_a_network_cannot_do_is_said_with_one_that_can(published, vocabulary, tmp_path):
    for name in ("tiny-k5", "tiny-beats", "tiny-stage2"):
        published(TINY[name].parts[0], network(name))
    classifier, sound = (ivt2.load(name, cache_dir=tmp_path) for name in ("tiny-k5", "tiny-beats"))
    with pytest.raises(InputError, match="tiny-k5 has no text encoder: load a release that has one, such as tiny-"):
        classifier.encode_text("a dog")
    with pytest.raises(InputError, match=r"tiny-k5 has no audio encoder: .* such as tiny-audio, tiny-beats$"):
        classifier.encode_audio((tone(1.0), 16_000))
    with pytest.raises(InputError, match="tiny-beats has no video encoder"):
        sound.encode_video("a.mp4")
    loaded = ivt2.load("tiny-stage2", cache_dir=tmp_path, tokenizer_file=vocabulary)
    with pytest.raises(InputError, match=r"caption 1 of 2: '\?!' has no words"):
        loaded.encode_text(["a dog", "?!"])
    with pytest.raises(InputError, match=r"video 1 of 2: none\.mp4: cannot be read"):
        loaded.encode_video([picture(0), "none.mp4"])
    with pytest.raises(InputError, match="batch_size=0: must be at least 1"):
        loaded.encode_text("a dog", batch_size=0)
    with pytest.raises(InputError, match=r"caption 0 of 1: int is no caption; give a str"):
        loaded.encode_text([3])
    with pytest.raises(InputError, match=r"features \[1, 12\] and \[2, 5\] cannot be compared; give \[N, E\]"):
        loaded.similarity(torch.ones(12), torch.ones(2, 5))


def test_features_of_other_libraries_are_compared_too(published, tmp_path):
    published(TINY["tiny-k5"].parts[0], network("tiny-k5"))
    loaded = ivt2.load("tiny-k5", cache_dir=tmp_path)
    rows, columns = np.array([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([0.0, 5.0])
    torch.testing.assert_close(loaded.similarity(rows, columns), torch.tensor([[0.8], [1.0]]))
    assert repr(loaded) == f"Loaded(tiny-k5 from {tmp_path / 'tiny-k5'}: video, 4 frames of 28 x 28; width 12)"


@pytest.mark.slow
def test_a_text_tower_with_adapters_leaves_no_weight_at_its_start(published, clips, tmp_path):
    spm = pytest.importorskip("sentencepiece")
    from ivt2.models.llama_text import LlamaText

    def build(frames, side):
        words = LlamaText(
            vocab_size=291, embed_dim=32, depth=2, num_heads=2, mlp_dim=48, projection_dim=16, lora_rank=2
        )
        return ClipModel(encoder(frames, side), words)

    one = release("tiny-llama", build, (part("model", clip.LARGE),), ("video", "text"), tokenizer="llama")
    zoo.RELEASES = TINY | {"tiny-llama": one}  # undone by small_zoo
    judge = network("tiny-llama")
    published(one.parts[0], judge)
    with (tmp_path / "tokenizer.model").open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(CAPTIONS * 20), model_writer=file, vocab_size=290, model_type="bpe",
            byte_fallback=True, minloglevel=2,
        )  # fmt: skip
    loaded = ivt2.load("tiny-llama", cache_dir=tmp_path, tokenizer_file=tmp_path / "tokenizer.model")
    assert any("lora_B" in name for name, _ in loaded.model.named_parameters())
    assert all(torch.equal(weight, judge.state_dict()[name]) for name, weight in loaded.model.state_dict().items())
    with torch.no_grad():
        words = judge.encode_text(loaded.tokenizer([normalize_caption(caption) for caption in CAPTIONS])[0])
    torch.testing.assert_close(loaded.encode_text(CAPTIONS), words)
    assert loaded.encode_video(clips).shape == (3, 16)


def test_the_package_offers_load_and_nothing_else():
    assert ivt2.load is hub.load
    with pytest.raises(AttributeError, match="no attribute 'unload'"):
        _ = ivt2.unload


VISION = {
    "image_size": 28, "patch_size": 14, "num_frames": 4, "embed_dim": 16, "depth": 1, "num_heads": 2,
    "mlp_ratio": 2.0, "pool_num_heads": 2, "pooled_dim": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 256, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "max_positions": 48,
    "fusion_layer": 1, "encoder_width": 16,
}  # fmt: skip


def test_a_run_of_training(clips, tmp_path):
    model = {
        "_target_": "ivt2.models.stage2.Stage2Model",
        "vision_encoder": {"_target_": "ivt2.models.internvideo2.InternVideo2", **VISION},
        "text_encoder": {"_target_": "ivt2.models.bert.Bert", **TEXT},
        "contrastive_dim": 6,
    }
    judge = Stage2Model(InternVideo2(**VISION), Bert(**TEXT), contrastive_dim=6).eval()
    state = {f"model.{name}": value for name, value in judge.state_dict().items()}
    folder = tmp_path / "last.ckpt"
    save_checkpoint(folder, {"state_dict": state}, config={"module": {"model": model}}, metadata={})

    loaded = ivt2.load(folder, tokenizer_file=VOCABULARY_FILE)
    ids, valid = loaded.tokenizer(["a red square"])
    with torch.no_grad():
        video = judge.embed_video(judge.encode_video(loaded.transform(clips[0])[None]))
        words = judge.embed_text(judge.encode_text(ids, valid))
    torch.testing.assert_close(loaded.encode_video(clips[0]), video)
    torch.testing.assert_close(loaded.encode_text("a red square"), words)
    assert not loaded.model.training
    assert next(ivt2.load(folder, dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16
    with pytest.raises(InputError, match="keeps its sizes"):
        ivt2.load(folder, num_frames=8)


def test_a_run_with_sound(clips, tmp_path):
    text = TEXT | {"encoder_width": 12}
    sound = {
        "patch_size": 32, "patch_dim": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32,
        "position_kernel": 4, "position_groups": 4, "num_buckets": 8, "max_distance": 16,
    }  # fmt: skip
    sizes = {"contrastive_dim": 6, "fusion_dim": 12, "audio_matching": True}
    model = {
        "_target_": "ivt2.models.stage2_audio.Stage2AudioVisualModel",
        "vision_encoder": {"_target_": "ivt2.models.internvideo2.InternVideo2", **VISION},
        "text_encoder": {"_target_": "ivt2.models.bert.Bert", **text},
        "audio_encoder": {"_target_": "ivt2.models.beats.Beats", **sound},
        **sizes,
    }
    judge = Stage2AudioVisualModel(InternVideo2(**VISION), Bert(**text), Beats(**sound), **sizes).eval()
    state = {f"model.{name}": value for name, value in judge.state_dict().items()}
    folder = tmp_path / "last.ckpt"
    save_checkpoint(folder, {"state_dict": state}, config={"module": {"model": model}}, metadata={})
    loaded = ivt2.load(folder)
    torch.testing.assert_close(loaded.model.state_dict(), judge.state_dict(), rtol=0, atol=0)
    rows = AudioTransform(64)(wav(tone(1.0)))[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_audio(wav(tone(1.0))), judge.embed_audio(judge.encode_audio(rows)))
        pooled = judge.embed_video(judge.encode_video(loaded.transform(clips[0])[None]))
    torch.testing.assert_close(loaded.encode_video(clips[0]), pooled)
    assert set(loaded.card.modalities) == {"video", "image", "audio", "text"}


MOBILECLIP = {"_target_": "ivt2.models.mobileclip.MobileClipText", "vocab_size": 256, "context_length": 9,
              "embed_dim": 16, "depth": 1, "num_heads": [2], "projection_dim": 6, "pool": "last"}  # fmt: skip
LLAMA = {"_target_": "ivt2.models.llama_text.LlamaText", "vocab_size": 300, "embed_dim": 16, "depth": 1, "num_heads": 2,
         "mlp_dim": 16, "projection_dim": 6, "lora_rank": 2, "lora_targets": ["q_proj"]}  # fmt: skip


def save_clip(folder, text):
    """A run of CLIP post-training; returns its network."""
    encoder = {"_target_": "ivt2.models.internvideo2.InternVideo2", **VISION}
    model = {"_target_": "ivt2.models.clip.ClipModel", "vision_encoder": encoder, "text_encoder": text}
    model |= {"vision_align": 6, "logit_bias": -3.0}
    judge = instantiate(model).eval()
    state = {f"model.{name}": value for name, value in judge.state_dict().items()}
    save_checkpoint(folder, {"state_dict": state}, config={"module": {"model": model}}, metadata={})
    return judge


@pytest.mark.parametrize(("text", "tokenizer"), [(MOBILECLIP, "bert"), (MOBILECLIP | {"pool": "argmax"}, "clip"),
                                                 (LLAMA, "llama")])  # fmt: skip
def test_a_run_of_clip(text, tokenizer, clips, tmp_path):
    folder = tmp_path / "last.ckpt"
    judge = save_clip(folder, text)
    loaded = ivt2.load(folder, tokenizer_file=VOCABULARY_FILE if tokenizer == "bert" else None)
    torch.testing.assert_close(loaded.model.state_dict(), judge.state_dict(), rtol=0, atol=0)
    assert (loaded.card.tokenizer, loaded.card.dim, loaded.card.num_frames) == (tokenizer, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_video(clips[0]), judge.encode_video(loaded.transform(clips[0])[None]))
        if tokenizer == "bert":
            ids, _ = WordPieceTokenizer(VOCABULARY_FILE, max_length=9)(["a red square"])
            torch.testing.assert_close(loaded.encode_text("a red square"), judge.encode_text(ids))


def test_a_run_of_clip_has_a_text_tower_of_its_own(tmp_path):
    folder = tmp_path / "last.ckpt"
    save_clip(folder, MOBILECLIP)
    config = json.loads((folder / "config.json").read_text())
    config["module"]["model"]["text_encoder"]["_target_"] = "ivt2.models.bert.Bert"
    state = {f"model.{name}": value for name, value in save_clip(tmp_path / "b.ckpt", MOBILECLIP).state_dict().items()}
    save_checkpoint(tmp_path / "c.ckpt", {"state_dict": state}, config=config, metadata={})
    with pytest.raises(InputError, match=r"text_encoder is .*Bert.*, which that network does not take"):
        ivt2.load(tmp_path / "c.ckpt")


@pytest.mark.parametrize("kind", ["stage1", "distill", "autoencoder"])
def test_the_encoder_of_masked_training_is_loaded(kind, clips, tmp_path):
    sizes = {"image_size": 28, "patch_size": 14, "num_frames": 4, "embed_dim": 16, "depth": 1, "num_heads": 2,
             "mlp_ratio": 2.0}  # fmt: skip
    pool = {"pool_num_heads": 2, "pooled_dim": 8}
    judge = VideoMAE(**sizes) if kind == "autoencoder" else InternVideo2(**sizes | pool)
    described = {
        "encoder": {
            "_target_": f"{type(judge).__module__}.{type(judge).__name__}",
            **sizes,
            **({} if kind == "autoencoder" else pool),
        }
    }
    prefix, module = {
        "stage1": ("student.encoder.", {"student": described}),
        "distill": ("students.b.encoder.", {"students": {"a": {}, "b": described}}),
        "autoencoder": ("model.encoder.", {"model": {"_target_": AUTOENCODER, **described}}),
    }[kind]
    state = {f"{prefix}{name}": value for name, value in judge.state_dict().items()}
    folder = tmp_path / "last.ckpt"
    save_checkpoint(folder, {"state_dict": state}, config={"module": module}, metadata={})
    loaded = ivt2.load(folder, student="b" if kind == "distill" else None)
    with torch.no_grad():
        expected = video_features(judge.eval(), torch.stack([loaded.transform(each) for each in clips]))
    torch.testing.assert_close(loaded.encode_video(clips), normalize(expected, dim=-1))
    assert ("image" in loaded.card.modalities) == (kind != "autoencoder")
    assert loaded.card.dim == expected.shape[1]
    with pytest.raises(InputError, match="has no text encoder"):
        loaded.encode_text("a red square")
    with pytest.raises(InputError, match="has no text encoder; leave it out"):
        ivt2.load(folder, student="b" if kind == "distill" else None, tokenizer_file=VOCABULARY_FILE)


def test_only_runs_have_students(tmp_path):
    with pytest.raises(InputError, match="student=b: tiny-k5 is no run of"):
        ivt2.load("tiny-k5", student="b", cache_dir=tmp_path)
