"""Reference configurations and parameter names of the video encoder, for the checks that contain one."""

import torch
from torch import Tensor

from ivt2.models.heads import ClassificationHead, ConcatHead, VideoClassifier
from ivt2.models.internvideo2 import InternVideo2, taps_from_end
from ivt2.models.stage1 import Stage1Student
from ivt2.nn.aligning import AligningDecoders

CLIP_DECODERS = ("clip_decoder.", "final_clip_decoder.", "clip_pos_embed", "clip_img_pos_embed")
MAE_DECODERS = ("mae_decoder.", "mae_pos_embed")
HEAD_NAMES = {
    "extra_mlp.0.": "mlp_norm.",
    "extra_mlp.1.": "mlp.",
    "down.0.": "down.",
    "down_norm.": "merge_norm.",
    "fc_norm.": "norm.",
    "head.": "linear.",
}
MERGE_NORMS = {"LN": "layer", "BN": "batch", "kaiming_BN": "plain_batch"}
PUBLISHED = {
    "patch_size": 14,
    "img_size": 224,
    "num_frames": 8,
    "tubelet_size": 1,
    "embed_dim": 1408,
    "depth": 40,
    "num_heads": 16,
    "mlp_ratio": 48 / 11,
    "init_values": 1e-5,
    "clip_return_layer": 1,
    "clip_teacher_embed_dim": 3200,
    "clip_teacher_final_dim": 768,
    "mae_return_layer": 1,
    "mae_teacher_embed_dim": 1408,
}
"""What the published constructors take where a configuration says nothing."""


def build_encoder(config: dict) -> InternVideo2:
    """The encoder that a reference configuration describes, in eval mode."""
    config = PUBLISHED | config
    return InternVideo2(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        num_frames=config["num_frames"],
        tubelet_size=config["tubelet_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_ratio=float(config["mlp_ratio"]),
        qkv_bias=config.get("qkv_bias", False),
        qk_norm=config.get("qk_normalization", True),
        layer_scale_init=float(config["init_values"]) if config["init_values"] else None,
        layer_scale_fp32=not config.get("layerscale_no_force_fp32", False),
        drop_path=float(config.get("drop_path_rate", 0.0)),
        position="separable" if config.get("sep_pos_embed") else "joint",
        separate_image_position=config.get("sep_image_video_pos_embed", False),
        gelu="tanh" if config.get("use_fused_mlp") else "erf",
        pool_num_heads=config.get("attn_pool_num_heads", 16),
        pooled_dim=config.get("clip_embed_dim", 768),
    ).eval()


def build_classifier(config: dict, *, extra_mlp: bool = False) -> VideoClassifier:
    """The classifier that a reference configuration describes; only its class says whether there is a perceptron."""
    encoder = build_encoder(config)
    merge = config.get("merge_method", "proj")
    sizes = {
        "pooled_dim": encoder.pooled_dim,
        "num_classes": config["num_classes"],
        "dropout": float(config.get("fc_drop_rate", 0.0)),
        "init_scale": float(config.get("init_scale", 0.001)),
    }
    if merge == "proj":
        head = ClassificationHead(**sizes, extra_mlp=extra_mlp)
    else:
        head = ConcatHead(
            **sizes,
            embed_dim=encoder.embed_dim,
            num_frames=encoder.grid_frames,
            per_frame="avgN" in merge,
            with_pooled=merge.endswith("_proj"),
            merge_norm=MERGE_NORMS[config.get("merge_norm", "LN")],
        )
    return VideoClassifier(encoder, head).eval()


def rename_classifier(name: str) -> str:
    """Our name, inside ``VideoClassifier``, of a reference parameter."""
    for prefix, ours in HEAD_NAMES.items():
        if name.startswith(prefix):
            return f"head.{ours}{name.removeprefix(prefix)}"
    return f"encoder.{rename(name)}"


def build_clip_decoders(config: dict, encoder: InternVideo2) -> AligningDecoders:
    """The branch that a reference configuration aligns with a teacher of tokens and of a pooled vector."""
    config = PUBLISHED | config
    return AligningDecoders(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_layers=config["clip_return_layer"],
        teacher_dim=config["clip_teacher_embed_dim"],
        final_dim=config["clip_teacher_final_dim"],
        num_frames=encoder.grid_frames,
        grid_size=encoder.grid_size,
        decoder="mlp" if config.get("clip_student_decoder") == "MLP_Decoder" else "linear",
        position=encoder.position,
        separate_image_position=encoder.separate_image_position,
        normalize=config.get("clip_norm_type", "l2") == "l2",
    ).eval()


def build_mae_decoders(config: dict, encoder: InternVideo2) -> AligningDecoders:
    """The branch that a reference configuration aligns with VideoMAE."""
    config = PUBLISHED | config
    return AligningDecoders(
        embed_dim=encoder.embed_dim,
        pooled_dim=encoder.pooled_dim,
        num_layers=config["mae_return_layer"],
        teacher_dim=config["mae_teacher_embed_dim"],
        final_dim=0,
        num_frames=encoder.grid_frames,
        grid_size=encoder.grid_size,
        decoder="mlp",
        cls_token=False,
        position=encoder.position,
        normalize=config.get("mae_norm_type", "l2") == "l2",
    ).eval()


def load_student(config: dict, state: dict[str, Tensor]) -> Stage1Student:
    """The student of pre-training, or of distillation where the weights have no branch for a second teacher."""
    encoder = build_encoder(config)
    mae = any(name.startswith(MAE_DECODERS) for name in state)
    student = Stage1Student(
        encoder,
        build_clip_decoders(config, encoder),
        build_mae_decoders(config, encoder) if mae else None,
        clip_taps=clip_taps(config),
        mae_taps=mae_taps(config) if mae else (),
    ).eval()
    student.load_state_dict({rename_student(name): value for name, value in state.items()})
    return student


def student_gradient_norms(student: Stage1Student, order: list[str]) -> Tensor:
    """Length of each parameter's gradient in the order of the reference; 0 where none arrived."""
    parameters = dict(student.named_parameters())
    assert {rename_student(name) for name in order} == set(parameters)
    gradients = [parameters[rename_student(name)].grad for name in order]
    return torch.stack([torch.zeros(()) if gradient is None else gradient.norm() for gradient in gradients])


def clip_taps(config: dict) -> list[int]:
    """Blocks whose streams the first branch decodes; the reference collects them in increasing depth."""
    if config.get("clip_student_return_index"):
        return sorted(config["clip_student_return_index"])
    config = PUBLISHED | config
    interval = float(config.get("clip_student_return_interval", 1))
    return taps_from_end(config["depth"], config["clip_return_layer"], interval)


def mae_taps(config: dict) -> list[int]:
    """Blocks whose streams the second branch decodes."""
    config = PUBLISHED | config
    interval = float(config.get("mae_student_return_interval", 1))
    return taps_from_end(config["depth"], config["mae_return_layer"], interval)


def rename_aligning(name: str) -> str:
    """Our name, inside ``AligningDecoders``, of a reference parameter of either branch."""
    name = name.removeprefix("clip_").removeprefix("mae_")
    if name.startswith(("decoder.", "final_clip_decoder.")):
        name = name.replace("final_clip_decoder.", "final.", 1).replace("decoder.", "decoders.", 1)
        name = name.replace(".head.0.", ".head.fc1.").replace(".head.2.", ".head.fc2.")
    return name


def rename_student(name: str) -> str:
    """Our name, inside ``Stage1Student``, of a reference parameter."""
    if name.startswith(CLIP_DECODERS):
        return f"clip_decoders.{rename_aligning(name)}"
    if name.startswith(MAE_DECODERS):
        return f"mae_decoders.{rename_aligning(name)}"
    return f"encoder.{rename(name)}"


def rename(name: str) -> str:
    """Our name of a reference parameter: the pooling's biases belong to its projections."""
    for letter in "qkv":
        name = name.replace(f"clip_projector.cross_attn.{letter}_bias", f"clip_projector.cross_attn.{letter}.bias")
    return name


def split_state(state: dict[str, Tensor], *others: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder's part under our names, and the entries whose name starts with one of ``others``."""
    rest = {name: value for name, value in state.items() if name.startswith(others)} if others else {}
    return {rename(name): value for name, value in state.items() if name not in rest}, rest
