"""instructor in the modes that need no tools."""

from __future__ import annotations

from typing import Literal

import instructor
import pytest
from openai import OpenAI
from pydantic import BaseModel


class Animal(BaseModel):
    name: Literal["cat", "dog", "panda"]
    likes: Literal["fish", "bones", "bamboo"]


@pytest.mark.parametrize("mode", [instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON])
def test_model_is_filled(url: str, model: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=url, api_key="none"), mode=mode)
    animal = client.create(
        model=model,
        response_model=Animal,
        messages=[{"role": "user", "content": "Name an animal, and what it likes to eat."}],
        max_tokens=300,
        max_retries=0,
    )
    assert isinstance(animal, Animal)
