"""Samplers in numpy that walk as diffusers' schedulers do; one class of diffusers a file, `registry` finds them by name."""
