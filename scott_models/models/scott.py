"""SCOTT: the transformer on top of a tokenizer, as a timm model, and one entry point per size.

Source: "Escaping the Big Data Paradigm in Self-Supervised Representation Learning", arXiv 2502.18056, Section 3 and
Appendix C.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.models import DefaultCfg, PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_seq
from torch import Tensor, nn

from ..errors import WeightsError
from ..weights import timm_configs
from .attentive_pool import AttentivePool
from .layers import Block, PlainLayerNorm, draw_normal, sincos_2d
from .tokenizer import PatchTokenizer, SparseConvTokenizer

__all__ = ["SCOTT"]

torch.fx.wrap("sincos_2d")

MODELS = ("scott_3_16", "scott_7_16", "scott_9_16", "scott_12_16", "scott_vit_7_16", "scott_vit_12_16")
OUR_POOL = {"attn_pool.query", "attn_pool.norm3.weight"}  # weights that none of timm's pools has
TOKENIZERS = {"sparse_conv": SparseConvTokenizer, "patch": PatchTokenizer}


class SCOTT(VisionTransformer):
    """Encode images by a transformer on masked sparse-convolution tokens: (B, C, H, W) -> features (B, D) or logits.

    Everything timm's VisionTransformer offers works; added are `forward_tokens` and `forward_visible`, which take a
    mask, and `get_attention`. Without a head the output is the average of the normed patch features.

    Args:
        img_size: height and width in pixels, multiples of 16; of the images, or of most of them.
        tokenizer: "sparse_conv" (SCOTT) or "patch" (the plain ViT of the ablation).
        global_pool: "avg", "attentive" (the paper's attentive probe), or timm's others.
        fc_norm: one more norm without parameters after the pool, as the paper's linear probe has it.
        use_mask_token: add the learned vector that stands for hidden patches; only pretraining needs it.
        proj_drop_rate: dropout after each attention's output projection (not in the MLP).
        pos_drop_rate, attn_drop_rate, drop_path_rate: dropout after the position and of attention weights, and
            the last block's stochastic depth; pretraining uses 0.2, 0.1 and 0.1.
        dynamic_img_size: accept any image whose sides are multiples of 16: positions are computed for each grid and
            never interpolated. False accepts images of `img_size` alone.
        dynamic_img_pad: fill images up to multiples of 16 with zeros, at the right and the bottom.

    Raises:
        ValueError: an unknown tokenizer, a patch size or image size the tokenizer cannot take.
    """

    if TYPE_CHECKING:  # TorchScript would read them too, and knows no modules
        pos_embed: Tensor
        attn_pool: nn.Module | None
        mask_token: nn.Parameter | None

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        tokenizer: str = "sparse_conv",
        global_pool: str = "avg",
        fc_norm: bool = False,
        use_mask_token: bool = False,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer: expected one of {sorted(TOKENIZERS)}, got {tokenizer!r}")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool="avg" if global_pool == "attentive" else global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            class_token=False,
            pos_embed="none",
            fc_norm=False,  # the norm stays in front of the pooling, where the paper has it
            dynamic_img_size=dynamic_img_size,
            dynamic_img_pad=dynamic_img_pad,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            patch_drop_rate=patch_drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            weight_init="skip",
            embed_layer=TOKENIZERS[tokenizer],
            norm_layer=PlainLayerNorm,
            block_fn=Block,
            device=device,
            dtype=dtype,
        )
        dd = {"device": device, "dtype": dtype}
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if use_mask_token else None
        if global_pool == "attentive":
            self.global_pool, self.attn_pool = global_pool, AttentivePool(embed_dim, device=device, dtype=dtype)
        if fc_norm:
            self.fc_norm = PlainLayerNorm(embed_dim)
        # timm's slot for a learned position becomes a constant: no gradient, no weight decay, not in a checkpoint.
        del self.pos_embed
        pos_embed = torch.empty(1, self.patch_embed.num_patches, embed_dim, **dd)
        self.register_buffer("pos_embed", pos_embed, persistent=False)
        self.init_weights()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw fresh weights by the released code's rule, and compute the constants; timm's arguments are ignored."""
        for module in self.modules():
            if hasattr(module, "init_non_persistent_buffers"):
                module.init_non_persistent_buffers()
        self.patch_embed.init_weights()
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=1e-6)
        for i, block in enumerate(self.blocks, start=1):
            block.init_weights(residual_divisor=(2 * i) ** 0.5)
        if self.attn_pool is not None:
            for module in self.attn_pool.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            self.attn_pool.init_weights()
        if isinstance(self.head, nn.Linear):
            draw_normal(self.head.weight, 0.02)
            nn.init.zeros_(self.head.bias)

    def init_non_persistent_buffers(self) -> None:
        """Compute the positions, which no checkpoint holds; timm and transformers call this by its name."""
        with torch.no_grad():
            self.pos_embed.copy_(sincos_2d(self.patch_embed.grid_size, self.embed_dim)[None])

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()  # positions are constants, and the released code decays the mask token

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^mask_token|^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one, and the pool by `global_pool` if it is given, also by "attentive"."""
        if global_pool == "attentive":
            if not isinstance(self.attn_pool, AttentivePool):
                self.attn_pool = AttentivePool(self.embed_dim).to(self.pos_embed).train(self.training)
            self.global_pool, global_pool = global_pool, None
        super().reset_classifier(num_classes, global_pool)
        if hasattr(self, "pretrained_cfg"):  # timm's, of a model that timm created
            _count_classes(self, num_classes)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Take images of another size, (height, width) in multiples of 16 px, from now on."""
        pos_embed, self.pos_embed = self.pos_embed, None  # or timm would interpolate it
        try:
            super().set_input_size(img_size, patch_size)
        finally:  # a refused size leaves the model as it was
            pos = sincos_2d(self.patch_embed.grid_size, self.embed_dim, pos_embed.device)[None]
            self.register_buffer("pos_embed", pos.to(pos_embed.dtype), persistent=False)

    def _pos_embed(self, x: Tensor) -> Tensor:
        pos_embed = self.pos_embed
        if self.dynamic_img_size:  # x is a map (B, rows, columns, D)
            pos_embed = sincos_2d((x.shape[1], x.shape[2]), self.embed_dim, x.device).to(pos_embed.dtype)
            x = x.flatten(1, 2)
        return self.pos_drop(x + pos_embed)

    def forward_tokens(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encode images to patch features before the last norm: (B, C, H, W), visible bool (B, N) -> (B, N, D).

        Where `visible` is False the patch is hidden from every stage of the tokenizer and the mask token stands in
        its place. `forward_features(images)` is `norm(forward_tokens(images))`.

        Raises:
            ValueError: a mask for a model that has no mask token, or one of the wrong shape or dtype.
        """
        x = self.patch_embed(images, visible)
        if visible is not None:
            if self.mask_token is None:
                raise ValueError(
                    "visible: expected a model created with use_mask_token=True, got one without a mask token"
                )
            x = torch.where(visible.reshape(x.shape[:-1])[..., None], x, self.mask_token.to(x.dtype).view(-1))
        x = self.patch_drop(self._pos_embed(x))
        return self._forward_blocks(x)

    def forward_visible(self, images: Tensor, visible: Tensor, places: Tensor | None = None) -> Tensor:
        """Encode the K visible patches of each image alone: images (B, C, H, W), visible bool (B, N) -> (B, K, D).

        Args:
            places: indices of the visible patches of each image, int64 (B, K). If they are given, nothing waits for a
                GPU.

        Raises:
            ValueError: images with different numbers of visible patches, or a mask of the wrong shape or dtype.
        """
        x = self._pos_embed(self.patch_embed(images, visible))
        if places is None:
            counts = visible.sum(dim=1)
            if (counts != counts[:1]).any():
                raise ValueError(f"visible: expected equally many visible patches in each image, got {counts.tolist()}")
            places = find_places(visible)
        return self._forward_blocks(x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])))

    def _forward_blocks(self, x: Tensor) -> Tensor:
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)

    def get_attention(self, images: Tensor, blocks: tuple[int, ...] = (-1,)) -> list[Tensor]:
        """Return the softmaxed attention of the given blocks, each (B, heads, N, N); -1 is the last block."""
        wanted = [range(len(self.blocks))[i] for i in blocks]
        maps = {}
        x = self._pos_embed(self.patch_embed(images))
        for i, block in enumerate(self.blocks):
            if i in wanted:
                maps[i] = block.attention_map(x)
            x = block(x)
        return [maps[i] for i in wanted]


def find_places(patches: Tensor) -> Tensor:
    """Find the indices of the True patches, row by row: bool (B, N) with K in each row -> int64 (B, K)."""
    places = patches.nonzero()[:, 1]
    return places.view(len(patches), len(places) // max(1, len(patches)))  # -1 would be ambiguous for no images


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: SCOTT) -> dict[str, Tensor]:
    """Make a checkpoint fit a model, or raise an error that names what does not fit.

    The mask token is dropped for a model without one, and so is a pool, or one of another kind; a model's pool of which
    the checkpoint knows nothing stays as it is. timm loads with `strict=False` as soon as the number of classes
    differs, which would let a checkpoint with foreign names load nothing in silence.

    Raises:
        WeightsError: the checkpoint lacks weights the model needs, or has some that it does not know.
    """
    state_dict = {name: tensor.float() for name, tensor in state_dict.items()}  # what timm adapts must not be rounded
    if model.mask_token is None:
        state_dict.pop("mask_token", None)
    own = model.state_dict()
    pool = {name: tensor for name, tensor in own.items() if name.startswith("attn_pool.")}
    theirs = {name for name in state_dict if name.startswith("attn_pool.")}
    if not pool or not theirs or OUR_POOL.isdisjoint(pool) != OUR_POOL.isdisjoint(theirs):
        state_dict = {name: tensor for name, tensor in state_dict.items() if name not in theirs} | pool
    heads = {name for name in {*state_dict, *own} if name.startswith("head.")}
    missing = sorted(own.keys() - state_dict.keys() - heads)
    unknown = sorted(state_dict.keys() - own.keys() - heads)
    if missing or unknown:
        raise WeightsError(f"checkpoint does not fit {type(model).__name__}: missing {missing}, unknown {unknown}")
    return state_dict


def _give(tensors: dict[str, Tensor], placeholder: dict[str, str], model: SCOTT) -> dict[str, Tensor]:
    """Replace, as timm's filter, the placeholder of `timm_configs.make_overlay` by the verified tensors."""
    model.pretrained_cfg.pop("state_dict")  # before timm copies it
    return checkpoint_filter_fn(tensors, model)


def _count_classes(model: nn.Module, classes: int) -> None:
    """Write the number of classes into a model's own configuration, and drop the names of the classes before."""
    cfg = {name: value for name, value in model.pretrained_cfg.items() if not name.startswith("label_")}
    model.pretrained_cfg = model.default_cfg = {**cfg, "num_classes": classes}


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "first_conv": "patch_embed.proj" if "_vit_" in name else "patch_embed.conv1",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://arxiv.org/abs/2502.18056",
        "paper_ids": "arXiv:2502.18056",
        **kwargs,
    }


def _default_cfgs() -> dict[str, DefaultCfg]:
    """Make timm's default configurations: for each model, one tag for each set of weights in the manifest.

    A model's name alone means a backbone: its first with weights, or the architecture where there are none yet.
    """
    tags = {tag: _cfg(tag, **cfg) for tag, cfg in timm_configs.make_pretrained_cfgs().items()}
    backbones = {tag: cfg for tag, cfg in tags.items() if not cfg["num_classes"]}
    bare = {name: _cfg(name) for name in MODELS if not any(tag.startswith(f"{name}.") for tag in backbones)}
    cfgs = generate_default_cfgs({**bare, **backbones})
    for tag in (tag for tag in tags if tag not in backbones):  # last, or timm might make one the default
        model, name = tag.split(".")
        cfgs[model].cfgs[name] = PretrainedCfg(**tags[tag])
        cfgs[model].tags.append(name)
    return cfgs


default_cfgs = _default_cfgs()


def _create_scott(variant: str, pretrained: bool, **kwargs: Any) -> SCOTT:
    pretrained_cfg = kwargs.get("pretrained_cfg")
    if pretrained_cfg is None or isinstance(pretrained_cfg, str):
        tag = pretrained_cfg or default_cfgs[variant].tags[0]
        name: str | None = f"{variant}.{tag}".rstrip(".")
    else:  # a whole config, one of ours or the caller's own
        name = timm_configs.find_tag(pretrained_cfg, variant)
    if entry := timm_configs.valid_entries().get(name or ""):
        kwargs = {**timm_configs.POOL_ARGS[entry.get("head")], **kwargs}
    filter_fn = checkpoint_filter_fn
    if pretrained and name:
        kwargs["pretrained_cfg_overlay"], tensors = timm_configs.make_overlay(
            name, kwargs.get("pretrained_cfg_overlay"), kwargs.get("cache_dir")
        )
        if tensors is not None:
            filter_fn = partial(_give, tensors)
    out_indices = kwargs.pop("out_indices", 3)
    model = build_model_with_cfg(
        SCOTT,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
    classes = getattr(model, "num_classes", 0)  # features_only has none
    if model.pretrained_cfg.get("num_classes") != classes:
        _count_classes(model, classes)
    return model


# The paper gives the heads of 7/16 (4) and 12/16 (6); those of 3/16 and 9/16 are this project's choice.


@register_model
def scott_3_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create SCOTT-3/16, 6.5 M parameters."""
    return _create_scott("scott_3_16", pretrained, **{"depth": 3, "num_heads": 4, **kwargs})


@register_model
def scott_7_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create SCOTT-7/16, 13.6 M parameters."""
    return _create_scott("scott_7_16", pretrained, **{"depth": 7, "num_heads": 4, **kwargs})


@register_model
def scott_9_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create SCOTT-9/16, 17.1 M parameters."""
    return _create_scott("scott_9_16", pretrained, **{"depth": 9, "num_heads": 6, **kwargs})


@register_model
def scott_12_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create SCOTT-12/16, 22.4 M parameters."""
    return _create_scott("scott_12_16", pretrained, **{"depth": 12, "num_heads": 6, **kwargs})


@register_model
def scott_vit_7_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create the ablation's ViT-7/16: SCOTT's transformer on plain patches, 12.7 M parameters."""
    return _create_scott("scott_vit_7_16", pretrained, **{"depth": 7, "num_heads": 4, "tokenizer": "patch", **kwargs})


@register_model
def scott_vit_12_16(pretrained: bool = False, **kwargs: Any) -> SCOTT:
    """Create the ablation's ViT-12/16: SCOTT's transformer on plain patches, 21.5 M parameters."""
    return _create_scott("scott_vit_12_16", pretrained, **{"depth": 12, "num_heads": 6, "tokenizer": "patch", **kwargs})
