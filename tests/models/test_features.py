import pytest
import torch
from torch import nn

from ivt2.models.features import audio_features, text_features, video_features
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.mobileclip import MobileClipText
from ivt2.models.stage1 import Stage1Student
from ivt2.models.videomae import VideoMAE
from ivt2.nn.aligning import AligningDecoders


@torch.no_grad()
def test_networks_without_a_shared_space_give_their_pooled_vector():
    video = torch.randint(0, 256, (2, 4, 3, 28, 28), dtype=torch.uint8)
    ids = torch.randint(1, 500, (2, 2, 77))
    sizes = {"image_size": 28, "patch_size": 14, "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    plain = InternVideo2(**sizes, mlp_ratio=2.0, pool_num_heads=2, pooled_dim=16).eval()
    decoders = AligningDecoders(
        embed_dim=32, pooled_dim=16, num_layers=1, teacher_dim=8, final_dim=8, num_frames=4, grid_size=2
    )
    mae = VideoMAE(**sizes, mlp_ratio=2.0).eval()
    words = MobileClipText(vocab_size=516, context_length=77, embed_dim=16, depth=1, num_heads=2, projection_dim=12)

    pooled = plain(video).pooled
    assert torch.equal(video_features(plain, video), pooled)
    assert torch.equal(video_features(Stage1Student(plain, decoders, clip_taps=[1]), video), pooled)
    assert torch.equal(video_features(mae, video), mae(video, taps=[1])[0].mean(dim=1))
    assert torch.equal(text_features(words.eval(), ids), words(ids[:, 0]))


@pytest.mark.parametrize("features", [video_features, audio_features, text_features])
def test_other_networks_have_no_feature(features):
    with pytest.raises(TypeError, match="Linear gives no feature of"):
        features(nn.Linear(1, 1), torch.zeros(2, 2))
