"""The torch engine: InternViT in PyTorch, on the CPU and on CUDA."""
