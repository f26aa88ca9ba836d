"""The torch engine: InternViT in PyTorch.

- `engine.py` loads a checkpoint and runs it on the CPU, with the model in `intern_vit.py`.
- `cuda_engine.py` runs it on CUDA, with the model in `fused_vit.py` and the kernels in
  `triton_programs.py`.
"""
