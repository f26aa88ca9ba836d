"""From an original InternVL checkpoint to a TensorRT-LLM 1.2.1 engine: `convert`, then `engine`.

Only `engine` needs TensorRT-LLM, and only as the program trtllm-build; `convert` runs anywhere.
"""
