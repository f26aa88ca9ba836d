"""Chat templates: with what text a model was trained around the turns of a conversation.

OpenGVLab/InternVL, internvl_chat/internvl/conversation.py. All that are served write a turn as
`<|im_start|>`, the role, a line feed, the text and `<|im_end|>`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from protos.checkpoint.location import CONFIG_FILE
from protos.checkpoint.section import Section

logger = structlog.get_logger()

TemplateName = Literal["internvl2_5", "Hermes-2", "internlm2-chat"]

INTERNVL2_SYSTEM_TEXT = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。"
)


@dataclass(frozen=True)
class Template:
    """How a conversation is laid out.

    Attributes:
        name: as config.json has it.
        system_text: what the system says where no message does.
        turn_separator: the text after each `<|im_end|>`.
    """

    name: str
    system_text: str
    turn_separator: str


INTERNVL2_5 = Template(
    name="internvl2_5",
    system_text="你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
    turn_separator="\n",
)
HERMES_2 = Template("Hermes-2", INTERNVL2_SYSTEM_TEXT, turn_separator="")
INTERNLM2_CHAT = Template("internlm2-chat", INTERNVL2_SYSTEM_TEXT, turn_separator="")
TEMPLATES = {template.name: template for template in (INTERNVL2_5, HERMES_2, INTERNLM2_CHAT)}


def read_template(checkpoint: Path, chosen: TemplateName | None = None) -> Template:
    """Returns the template of a checkpoint, with the system text that its config.json may have.

    Args:
        checkpoint: the folder.
        chosen: a name that wins over config.json's.

    Raises:
        CheckpointError: config.json names no template and none is chosen, or one that we do not
            serve.
    """
    config = Section.of_file(checkpoint / CONFIG_FILE)
    template = TEMPLATES[chosen or _own_name(config)]
    if chosen and config.values.get("template") not in (None, chosen):
        logger.warning(
            "template_overridden", chosen=chosen, checkpoint_template=config.values["template"]
        )
    if not config.has("system_message"):
        return template
    return replace(template, system_text=config.read("system_message", str))


def _own_name(config: Section) -> str:
    if not config.has("template"):
        known = ", ".join(TEMPLATES)
        raise config.error("template", f"is missing; name it with --template, one of {known}")
    return config.one_of("template", tuple(TEMPLATES))
