"""The compiled student learns what the one that is not learns; in a process of its own, where nobody checks shapes."""

import shutil
import subprocess
import sys

import pytest

COMPILED = """
import torch
from torch._dynamo.utils import counters
from ivt2.losses.feature_alignment import feature_alignment_loss
from ivt2.models.internvideo2 import InternVideo2
from ivt2.models.stage1 import Branch, build_student

torch.set_num_threads(1)
video = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
visible = torch.tensor([[0, 3, 6], [1, 2, 7]])
target = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))

def learn(compile):
    torch.manual_seed(0)
    encoder = InternVideo2(image_size=8, patch_size=4, num_frames=2, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.0,
                           layer_scale_init=0.5, pool_num_heads=2, pooled_dim=8, drop_path=0.2 * (compile is None))
    student = build_student(encoder, mae=Branch(16, 1, cls_token=False), compile=bool(compile))
    loss = feature_alignment_loss(student.decode(video, visible=visible).mae[0], target)
    loss.backward()
    return student, loss

(plain, one), (fast, two) = learn(False), learn(True)
torch.testing.assert_close(two, one)
assert list(fast.state_dict()) == list(plain.state_dict())
compared = 0
for (name, judge), ours in zip(plain.named_parameters(), fast.parameters(), strict=True):
    assert (judge.grad is None) == (ours.grad is None), name
    if judge.grad is not None:
        torch.testing.assert_close(ours.grad, judge.grad, rtol=1e-4, atol=1e-6, msg=name)
        compared += 1
assert compared > 30, compared
# Three equal blocks are compiled once; the pooling and the decoder are the other two.
assert counters["stats"]["unique_graphs"] == 3, counters["stats"]
assert not counters["graph_break"], counters["graph_break"]
# The whole is one graph, stochastic depth included, when nobody has to count what is visible.
torch._dynamo.reset()
varied, _ = learn(None)
whole = torch.compile(varied.decode, backend="eager", fullgraph=True)
assert whole(video, visible=visible).mae[0].shape == (2, 3, 16)
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_parts_give_the_same_loss_and_gradients():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr
