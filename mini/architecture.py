"""The modules of `mini`: FLUX.2-klein's own classes at a small size."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class MiniConfig:
    """Sizes of `mini`. Tokens are 16 x 16 pixels: three VAE halvings, then 2 x 2 packing."""

    size_level: int = 384
    max_sequence_length: int = 48
    text_hidden: int = 64
    text_layers: int = 10
    text_out_layers: tuple[int, ...] = (3, 6, 9)
    double_blocks: int = 2
    single_blocks: int = 6
    heads: int = 3
    head_dim: int = 64
    feature_block: int = 5
    vae_channels: tuple[int, ...] = (16, 64, 96, 192)
    decoder_channels: tuple[int, ...] = (16, 32, 48, 64)
    latent_channels: int = 96

    @property
    def width(self) -> int:
        """Width of the DiT."""
        return self.heads * self.head_dim

    @property
    def embedded(self) -> int:
        """Width of a prompt embedding: hidden states side by side."""
        return len(self.text_out_layers) * self.text_hidden

    @property
    def token_channels(self) -> int:
        """Values of an image token: 2 x 2 latents."""
        return 4 * self.latent_channels

    @property
    def token_px(self) -> int:
        """Pixels per token side."""
        return int(2 ** len(self.vae_channels))


CONFIG = MiniConfig()


def build_vae() -> AutoencoderKLFlux2:
    """The autoencoder, with random weights."""
    levels = len(CONFIG.vae_channels)
    return AutoencoderKLFlux2(
        block_out_channels=CONFIG.vae_channels,
        decoder_block_out_channels=CONFIG.decoder_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=CONFIG.latent_channels,
        norm_num_groups=8,
        sample_size=CONFIG.size_level,
        mid_block_add_attention=False,
    )


def build_text_encoder(vocab_size: int, pad_id: int) -> Qwen3ForCausalLM:
    """The text encoder, with random weights."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=CONFIG.text_hidden,
            intermediate_size=3 * CONFIG.text_hidden,
            num_hidden_layers=CONFIG.text_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=CONFIG.text_hidden // 4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=pad_id,
            bos_token_id=pad_id,
            eos_token_id=2,
            use_cache=False,
        )
    )


def build_transformer() -> Flux2Transformer2DModel:
    """The DiT, with random weights and residual gates of about 1."""
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=CONFIG.token_channels,
        num_layers=CONFIG.double_blocks,
        num_single_layers=CONFIG.single_blocks,
        attention_head_dim=CONFIG.head_dim,
        num_attention_heads=CONFIG.heads,
        joint_attention_dim=CONFIG.embedded,
        timestep_guidance_channels=64,
        axes_dims_rope=(CONFIG.head_dim // 4,) * 4,
        rope_theta=2000,
        guidance_embeds=False,
    )
    _open_gates(transformer)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return transformer


@torch.no_grad()
def _open_gates(transformer: Flux2Transformer2DModel) -> None:
    """Set shift and scale to 0 and gates to about 1 at every timestep.

    The modulation layers have no bias, so a constant gate is the projection on the
    mean direction of the time embedding.
    """
    times = torch.linspace(0, 1000, 33)
    embedded = torch.nn.functional.silu(transformer.time_guidance_embed(times, None)).mean(0)
    direction = embedded / embedded.square().sum()
    for modulation in (
        transformer.double_stream_modulation_img,
        transformer.double_stream_modulation_txt,
        transformer.single_stream_modulation,
    ):
        weight = modulation.linear.weight
        weight.mul_(0.1)
        dim = weight.shape[1]
        for group in range(modulation.mod_param_sets):
            gate = slice((3 * group + 2) * dim, (3 * group + 3) * dim)
            weight[gate] += direction


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The flow-matching scheduler of FLUX.2-klein."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        time_shift_type="exponential",
    )
