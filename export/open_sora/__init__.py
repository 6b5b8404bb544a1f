"""The Open-Sora transformers, which diffusers has no classes for: `stdit.STDiT` (1.0) and `stdit3.STDiT3` (1.2).

Modules and tensors are named as in the published checkpoints; docs/open_sora.md says how one becomes a model directory.
Architecture: Open-Sora, arXiv:2412.20404, and opensora/models/{stdit,layers} of hpcaitech/Open-Sora at v1.0.0 and v1.2.0. Three things
are written another way, with equal results:

- text is not packed: a key mask takes the hidden tokens out of cross-attention;
- positions are computed from the latents' sizes, which may all change from call to call; sizes must be multiples of the patch;
- frames that are given, not denoised (`x_mask`), are not supported.
"""
