"""Instructions: how a record of instruction data becomes one text, and how much of it is the prompt."""

from __future__ import annotations

from dataclasses import dataclass


class Exchange(str):
    """A prompt and its response as one text, of which the first ``prompt`` characters are the prompt."""

    prompt: int

    @classmethod
    def of(cls, prompt: str, response: str) -> Exchange:
        """The text of both."""
        text = cls(prompt + response)
        text.prompt = len(prompt)
        return text


@dataclass(frozen=True)
class Form:
    """Where a record keeps instruction, input and response, and the prompt that is made of the first two. ``input`` is
    None where records have none; the second template is for those that have one that is not blank."""

    instruction: str
    input: str | None
    response: str
    template: str
    template_with_input: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The record's keys: those that must be there first, the input's last."""
        return (self.instruction, self.response, *([] if self.input is None else [self.input]))

    def exchange(self, instruction: str, given: str, response: str) -> Exchange:
        """The text of a record; ``given`` is its input, empty where it has none."""
        template = self.template_with_input if given else self.template
        return Exchange.of(template.format(instruction=instruction, input=given), response)
