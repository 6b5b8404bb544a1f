"""Whole random diffusers pipelines, small enough for tests: tokenizer, text encoder, VAE, scheduler and transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tiny_vaes import CHANNELS, tiny_mochi_vae
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

SENTENCES = (
    "a red kite over the sea",
    "two dogs run in the snow",
    "a cat bakes a cake, slowly",
    "the city at night seen from above",
    "waves break on a dark shore & the wind blows",
)
TEXT_DIM = 32


def tiny_tokenizer() -> T5Tokenizer:
    """A Unigram tokenizer of a few sentences."""
    own = Tokenizer(models.Unigram())
    own.normalizer = normalizers.NFKC()
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    own.train_from_iterator(SENTENCES, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>"))
    own.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=own, extra_ids=0, additional_special_tokens=[])


def tiny_t5(kind: str = "t5", seed: int = 0) -> Any:
    """A T5 or UMT5 encoder of two blocks."""
    torch.manual_seed(seed)
    config_class: Any = UMT5Config if kind == "umt5" else T5Config
    model_class: Any = UMT5EncoderModel if kind == "umt5" else T5EncoderModel
    config = config_class(
        vocab_size=128,
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
    )
    return model_class(config).eval()


def tiny_words(start: str, end: str, *, template: bool) -> Any:
    """Whole words; `end` has the highest number and pads. `template`: knows the words of HunyuanVideo's, and adds no end."""
    own = Tokenizer(models.WordLevel(unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [*SENTENCES, *([DEFAULT_PROMPT_TEMPLATE["template"]] if template else [])]
    own.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", start]))
    own.add_special_tokens([end])
    ids = {token: own.token_to_id(token) for token in (start, end)}
    single = f"{start} $A" if template else f"{start} $A {end}"
    own.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ids.items()))
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=own, bos_token=start, eos_token=end, pad_token=end, unk_token="<unk>")


def tiny_llama(seed: int = 0) -> Any:
    """Four blocks, of which HunyuanVideo reads two; two heads share keys and values."""
    torch.manual_seed(seed)
    known: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 4}
    model: Any = LlamaModel(LlamaConfig(vocab_size=192, hidden_size=TEXT_DIM, intermediate_size=48, **known))
    return model.eval()


def tiny_clip(seed: int = 0, **changes: Any) -> Any:
    """Two blocks."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, **changes)
    model: Any = CLIPTextModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


def tiny_wan_vae(seed: int = 0, **changes: Any) -> AutoencoderKLWan:
    """Two levels, both halving the picture, one of them the frames too."""
    torch.manual_seed(seed)
    known = {
        "base_dim": 8,
        "z_dim": CHANNELS,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.0, 2.0, 0.5, 1.5],
        "scale_factor_temporal": 2,
        "scale_factor_spatial": 4,
    }
    return AutoencoderKLWan(**(known | changes)).eval()


def tiny_cogvideox_vae(seed: int = 0) -> AutoencoderKLCogVideoX:
    """Four levels, as many as a compression of 4 in time takes with its stride of 8."""
    torch.manual_seed(seed)
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=96,
        sample_width=160,
    ).eval()


def tiny_hunyuan_video_vae(seed: int = 0) -> AutoencoderKLHunyuanVideo:
    """Four levels, as many as its strides of 4 frames and 8 pixels take."""
    torch.manual_seed(seed)
    return AutoencoderKLHunyuanVideo(
        block_out_channels=(8, 8, 8, 16), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=2
    ).eval()


def tiny_image_vae(seed: int = 0) -> AutoencoderKL:
    """A VAE of pictures, as Latte has it."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def tiny_ltx_vae(seed: int = 0) -> AutoencoderKLLTXVideo:
    """LTX-Video's, with a stride of 8 frames and 32 pixels."""
    torch.manual_seed(seed)
    scaling = (True, True, True, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=scaling,
        decoder_spatio_temporal_scaling=scaling,
    )
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    return vae.eval()


def save_tiny_wan(folder: Path) -> Path:
    """A WanPipeline as `save_pretrained` writes it."""
    torch.manual_seed(1)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=128,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    _shake(transformer)
    pipe = WanPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_t5("umt5"),
        vae=tiny_wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_cogvideox(folder: Path) -> Path:
    """A CogVideoXPipeline as `save_pretrained` writes it."""
    torch.manual_seed(2)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=16,
        text_embed_dim=TEXT_DIM,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=12,
        use_rotary_positional_embeddings=True,
    )
    _shake(transformer)
    pipe = CogVideoXPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_t5("t5"),
        vae=tiny_cogvideox_vae(),
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_hunyuan_video(folder: Path) -> Path:
    """A HunyuanVideoPipeline as `save_pretrained` writes it."""
    torch.manual_seed(3)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    _shake(transformer)
    words = tiny_words("<s>", "</s>", template=False)
    pipe = HunyuanVideoPipeline(
        text_encoder=tiny_llama(),
        tokenizer=tiny_words("<s>", "</s>", template=True),
        transformer=transformer,
        vae=tiny_hunyuan_video_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip(eos_token_id=words.eos_token_id),
        tokenizer_2=words,
    )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_mochi(folder: Path) -> Path:
    """A MochiPipeline as `save_pretrained` writes it."""
    torch.manual_seed(4)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=16,
    )
    _shake(transformer)
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=tiny_mochi_vae(channels=12),
        text_encoder=tiny_t5("t5"),
        tokenizer=tiny_tokenizer(),
        transformer=transformer,
        force_zeros_for_empty_prompt=True,
    )
    pipe.save_pretrained(folder)
    return folder


def _shake(model: torch.nn.Module) -> None:
    """Fresh biases and modulation are near zero, which would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale_shift_table" in name or "bias" in name or name.startswith("proj_out"):
                parameter.normal_(0.0, 0.2)
