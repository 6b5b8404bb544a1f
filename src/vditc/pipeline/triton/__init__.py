"""What runs inside of Triton Inference Server: its Python backend samples clips and calls the models of the engines beside it.

`vditc package --triton` copies this and the modules that it imports into the model repository (`vditc.pipeline.triton.repository`), so
that the server's Python needs numpy, ml_dtypes and safetensors alone, and tokenizers where prompts are encoded.
"""
