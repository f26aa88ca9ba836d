"""Kinds of checkpoints that are not served, each told from its config or its tensors' names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from protos.checkpoint.location import model_name
from protos.checkpoint.section import CheckpointError, Section, quoted

MODEL_TYPE = "internvl_chat"
MODEL_CLASS = "InternVLChatModel"
MODEL_CODE = f"modeling_internvl_chat.{MODEL_CLASS}"
CONVERSION_TYPE = "internvl"
CONVERSION_CLASS = "InternVLForConditionalGeneration"
# Decoders of released checkpoints that are not served: what they are, and who is served instead.
REFUSED_DECODERS = {
    "Qwen3MoeForCausalLM": (
        "a mixture of experts; of the series InternVL3.5 the dense sizes are served, up to 38B"
    ),
    "GptOssForCausalLM": (
        "GPT-OSS, a mixture of experts; of the series InternVL3.5 the dense sizes are served,"
        " up to 38B"
    ),
    "Phi3ForCausalLM": "Phi-3; of the series InternVL2 all other sizes are served",
}
QUANTISED_NAME = re.compile(r"-(AWQ|GPTQ|FP8|INT4|INT8|W4A16|BNB|4bit|8bit)\b.*$", re.IGNORECASE)
QUANTISED_TENSOR = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_scale_inv|SCB)$"
    r"|\.weight\.(absmax|quant_map|quant_state\..*)$"
)
LORA_TENSOR = re.compile(
    r"\bbase_model\.model\.|\.lora_(A|B|embedding_A|embedding_B)\b"
    r"|\.(base_layer|modules_to_save|original_module)\."
)
FLASH_TENSOR = re.compile(r"^(mlp2|gating|pooling_before_gating)\.")
# Of torch.compile, of the libraries for training on many GPUs, of Lightning.
WRAPPED_TENSOR = re.compile(
    r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
    r"|^module\.|^model\.(vision_model|mlp1)\."
)
CONVERSION_TENSOR = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


def require_served_config(model: Section) -> None:
    """Refuses a kind of checkpoint that config.json tells.

    Args:
        model: config.json as a whole.

    Raises:
        CheckpointError: it is a -hf conversion, another model or one of other code, quantised, a
            Flash one, a mixture of experts, or has a decoder of a family that is not served.
    """
    _refuse_conversion(model)
    _refuse_other_code(model)
    _refuse_quantised(model)
    if model.read("flash_mode", bool, False):
        raise model.error("flash_mode", f"is True, which makes it {_flash(model)}")
    if (vision := _part(model, "vision_config")) and vision.read("use_moe", bool, False):
        raise vision.error("use_moe", "is True: a mixture of experts, which is not served")
    if llm := _part(model, "llm_config"):
        _refuse_decoder(llm)


def require_served_tensors(model: Section, names: Iterable[str]) -> None:
    """Refuses a kind of checkpoint that its tensors' names tell.

    Args:
        model: config.json as a whole.
        names: of all the tensors.

    Raises:
        CheckpointError: it is an unmerged LoRA, quantised, a Flash one, a -hf conversion, or was
            saved from within a wrapper.
    """
    kinds = (
        (LORA_TENSOR, _lora),
        (QUANTISED_TENSOR, _quantised),
        (FLASH_TENSOR, _flash),
        (CONVERSION_TENSOR, _conversion),
        (WRAPPED_TENSOR, _wrapped),
    )
    for name in names:
        for pattern, describe in kinds:
            if pattern.search(name):
                raise CheckpointError(f"{model.file.parent}: {name} is of {describe(model)}")


def require_served_name(model: Section) -> None:
    """Refuses a folder whose name says that it is quantised.

    For a folder without safetensors alone: the released ones of AWQ are pickles, and only some of
    their configs tell.
    """
    name = model_name(model.file.parent)
    if QUANTISED_NAME.search(name):
        raise CheckpointError(f"{model.file.parent}: {name} is {_quantised(model)}")


def _refuse_conversion(model: Section) -> None:
    model_type = model.read("model_type", str, MODEL_TYPE)
    if model_type == CONVERSION_TYPE:
        raise model.error("model_type", f"is {model_type!r}, that of {_conversion(model)}")
    if CONVERSION_CLASS in model.read("architectures", list, []):
        raise model.error("architectures", f"names the class of {_conversion(model)}")
    if model_type != MODEL_TYPE:
        raise model.error("model_type", f"is {model_type!r}; only {MODEL_TYPE!r} is served")
    if model.has("text_config") and not model.has("llm_config"):
        raise model.error("text_config", f"stands for llm_config, as in {_conversion(model)}")


def _refuse_other_code(model: Section) -> None:
    """Refuses what a folder's own Python would compute otherwise, with the same tensors or not."""
    classes = model.read("architectures", list, [])
    if classes and MODEL_CLASS not in classes:
        raise model.error("architectures", f"is {quoted(classes)}; only {MODEL_CLASS} is served")
    code = model.section("auto_map", {})
    # A fine-tune's has the hub id that the code is from in front: "OpenGVLab/InternVL3-1B--...".
    if code.read("AutoModel", str, MODEL_CODE).rpartition("--")[2] != MODEL_CODE:
        complaint = f"is {quoted(code.values['AutoModel'])}; only {MODEL_CODE} is served"
        raise code.error("AutoModel", complaint)


def _refuse_quantised(model: Section) -> None:
    for part in (model, _part(model, "llm_config"), _part(model, "vision_config")):
        if part and part.has("quantization_config"):
            method = part.section("quantization_config").read("quant_method", str, "unnamed")
            complaint = f"is {method!r}, that of {_quantised(model)}"
            raise part.error("quantization_config.quant_method", complaint)


def _refuse_decoder(llm: Section) -> None:
    for name in llm.read("architectures", list, []):
        if isinstance(name, str) and (sentence := REFUSED_DECODERS.get(name)):
            raise llm.error("architectures", f"names {name}, {sentence}")


def _part(model: Section, key: str) -> Section | None:
    """Returns an object of config.json; None where a later check misses it."""
    return model.section(key) if isinstance(model.values.get(key), dict) else None


def _conversion(model: Section) -> str:
    return (
        "a conversion to transformers' own classes (-hf), which is not served; serve"
        f" {_original(model, '-hf')}, or convert it back with internvl_chat/tools/"
        "internvl_hf2custom.py of OpenGVLab/InternVL"
    )


def _quantised(model: Section) -> str:
    return (
        "a quantised checkpoint, which is not served; serve"
        f" {_original(model, QUANTISED_NAME.pattern)}, which internvl-llm-build quantises for"
        " TensorRT-LLM if that is wanted"
    )


def _flash(model: Section) -> str:
    return (
        "a Flash checkpoint, which gives some tiles a quarter of the tokens and is not served;"
        f" serve {_original(model, '-Flash')}"
    )


def _lora(model: Section) -> str:
    keys = [key for key in ("use_backbone_lora", "use_llm_lora") if model.values.get(key)]
    ranks = " and ".join(f"{key} is {quoted(model.values[key])}" for key in keys)
    return (
        f"a LoRA that is not merged{ranks and f' ({ranks})'}; merge it with"
        " `python tools/merge_lora.py FOLDER MERGED` in internvl_chat of"
        " OpenGVLab/InternVL, and serve MERGED"
    )


def _wrapped(model: Section) -> str:
    return (
        "a model that was saved from within a wrapper (torch.compile, DistributedDataParallel,"
        " Lightning ...); save the model itself, whose tensors are vision_model.*, mlp1.* and"
        " language_model.*"
    )


def _original(model: Section, suffix: str) -> str:
    """Returns what a checkpoint was made from: its own name without the suffix, if it has that."""
    name = model_name(model.file.parent)
    original = re.sub(f"{suffix}$", "", name, flags=re.IGNORECASE)
    return f"the original, {original}" if original != name else "the original"
