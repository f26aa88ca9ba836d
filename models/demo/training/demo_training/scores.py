"""The scores: how many answers were right, by task, language and form."""

from __future__ import annotations

from collections import Counter

Label = tuple[str, str, str]


class Scores:
    """Counts right answers by label: task, language, form."""

    def __init__(self) -> None:
        self._asked: Counter[Label] = Counter()
        self._right: Counter[Label] = Counter()

    def add(self, label: Label, right: bool) -> None:
        """Counts one answer."""
        self._asked[label] += 1
        self._right[label] += right

    def share(self, task: str = "", language: str = "", form: str = "") -> float | None:
        """Returns the share of right answers, in per cent, among the labels that match.

        An empty argument matches all; None if nothing was asked.
        """
        wanted = (task, language, form)
        labels = [
            label
            for label in self._asked
            if all(want in ("", have) for want, have in zip(wanted, label, strict=True))
        ]
        asked = sum(self._asked[label] for label in labels)
        return 100 * sum(self._right[label] for label in labels) / asked if asked else None

    def tasks(self) -> list[str]:
        """Returns the tasks that were asked, sorted."""
        return sorted({label[0] for label in self._asked})

    def asked(self, task: str = "", language: str = "") -> int:
        """Returns how many questions were asked; an empty argument matches all."""
        return sum(
            count
            for label, count in self._asked.items()
            if task in ("", label[0]) and language in ("", label[1])
        )

    def table(self) -> str:
        """Returns one line a task, and all: questions, then shares by language and by form."""
        columns = [("en", "", "en"), ("zh", "", "zh"), ("", "sentence", ""), ("", "word", "")]
        lines = [f"{'task':24}{'asked':>7}{'all':>7}{'en':>7}{'zh':>7}{'sent.':>7}{'word':>7}"]
        for task in [*self.tasks(), ""]:
            shares = [self.share(task)]
            shares += [self.share(task, language, form) for language, form, _ in columns]
            cells = "".join("      -" if share is None else f"{share:7.1f}" for share in shares)
            lines.append(f"{task or 'all':24}{self.asked(task):7}{cells}")
        return "\n".join(lines)
