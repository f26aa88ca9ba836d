"""The rotary embedding that llm_config asks for: its base, and nothing that changes its angles."""

from __future__ import annotations

from protos.checkpoint.section import Section

# The second is where transformers 5 writes the base, too.
SCALINGS = ("rope_scaling", "rope_parameters")
# The dynamic kind changes the angles only beyond max_position_embeddings, and the context ends
# there. To apply it below, as some servers do, shifts every logit.
SERVED_TYPES = ("default", "dynamic")
KNOWN_KEYS = {"type", "rope_type", "factor", "rope_theta", "partial_rotary_factor"}


def rotary_base(llm: Section, default: float) -> float:
    """Returns the base of the wavelengths; `default` where llm_config has none.

    Raises:
        CheckpointError: there are two different bases, or something that changes the angles.
    """
    scalings = [llm.section(key) for key in SCALINGS if llm.has(key)]
    for scaling in scalings:
        _check_type(scaling)
    sections = [llm, *scalings]
    for section in sections:
        if section.positive("partial_rotary_factor", 1.0) != 1:
            found = section.values["partial_rotary_factor"]
            raise section.error("partial_rotary_factor", f"is {found}; only 1 is served")
    return _one_base([section for section in sections if section.has("rope_theta")], default)


def _check_type(scaling: Section) -> None:
    types = [scaling.read(key, str) for key in ("rope_type", "type") if scaling.has(key)]
    if not types and scaling.has("factor"):
        raise scaling.error("type", "is missing, though there is a factor")
    for rope_type in types:
        if rope_type not in SERVED_TYPES or rope_type != types[0]:
            raise scaling.error(
                "rope_type" if scaling.has("rope_type") else "type",
                f"is {' and '.join(map(repr, types))}, which changes the angles of all positions; "
                f"served: {' and '.join(SERVED_TYPES)}, or none. If the model was trained without "
                "it, remove it",
            )
    unknown = [key for key in scaling.values if key not in KNOWN_KEYS and scaling.has(key)]
    if unknown:
        raise scaling.error(unknown[0], "is an option of rotary embeddings that is not served")
    if types[:1] == ["dynamic"] and scaling.positive("factor") < 1:
        raise scaling.error("factor", f"is {scaling.values['factor']}; it must be 1 or more")


def _one_base(sections: list[Section], default: float) -> float:
    bases = [section.positive("rope_theta") for section in sections]
    for section, base in zip(sections, bases, strict=True):
        if base != bases[0]:
            first = f"{sections[0].prefix}rope_theta"
            raise section.error("rope_theta", f"is {base:g}, but {first} is {bases[0]:g}")
    return bases[0] if bases else default
