"""Reference configurations and parameter names of the video encoder, for the checks that contain one."""

from torch import Tensor

from ivt2.models.internvideo2 import InternVideo2


def build_encoder(config: dict) -> InternVideo2:
    """The encoder that a reference configuration describes, in eval mode."""
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
        layer_scale_init=float(config["init_values"]) if config.get("init_values") else None,
        layer_scale_fp32=not config.get("layerscale_no_force_fp32", False),
        drop_path=float(config.get("drop_path_rate", 0.0)),
        position="separable" if config.get("sep_pos_embed") else "joint",
        separate_image_position=config.get("sep_image_video_pos_embed", False),
        gelu="tanh" if config.get("use_fused_mlp") else "erf",
        pool_num_heads=config.get("attn_pool_num_heads", 16),
        pooled_dim=config.get("clip_embed_dim", 768),
    ).eval()


def rename(name: str) -> str:
    """Our name of a reference parameter: the pooling's biases belong to its projections."""
    for letter in "qkv":
        name = name.replace(f"clip_projector.cross_attn.{letter}_bias", f"clip_projector.cross_attn.{letter}.bias")
    return name


def split_state(state: dict[str, Tensor], *others: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encoder's part under our names, and the entries whose name starts with one of ``others``."""
    rest = {name: value for name, value in state.items() if name.startswith(others)} if others else {}
    return {rename(name): value for name, value in state.items() if name not in rest}, rest
