"""What went wrong without ending the run: warnings as values, one for each kind of trouble."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Notice:
    """One kind of trouble and the places where it was met.

    Attributes:
        text: What it is and what was done about it, such as "a picture cannot be decoded; it is left out".
        places: Where, such as "1.32 s" or the name of a file; empty where it concerns the whole input.
    """

    text: str
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.places:
            return self.text
        more = f" and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        return f"{self.places[0]}{more}: {self.text}"


class Notices:
    """Collects notices; the same text at several places makes one notice. ``str(notice)`` is one line for a person.

    strict: raise instead of collecting.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._by_text: dict[str, Notice] = {}
        self._seen: set[tuple[str, str]] = set()

    def add(self, text: str, place: str = "") -> None:
        """Records a notice once, however often it is met.

        Raises:
            ValueError: if ``strict``, with the notice as its message.
        """
        if self.strict:
            raise ValueError(str(Notice(text, [place] if place else [])))
        notice = self._by_text.setdefault(text, Notice(text))
        if place and (text, place) not in self._seen:
            self._seen.add((text, place))
            notice.places.append(place)

    def __iter__(self) -> Iterator[Notice]:
        return iter(self._by_text.values())

    def __len__(self) -> int:
        return len(self._by_text)
