"""The visitor's language: phrases, numbers and times as its readers expect them. English phrases are their own keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from starlette.requests import HTTPConnection

from hub.dashboard.phrases import JAPANESE, sentences
from lineside.clock import NS

Code = Literal["en", "ja"]
LANGUAGES: dict[Code, str] = {"en": "English", "ja": "日本語"}  # each by its own name
COOKIE = "lineside_language"
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
NONE = "–"
FIELDS = {"name": r"\S+", "names": r"\S+(?: and \S+)*"}  # what fits these; anything fits the others


def _pattern(template: str) -> re.Pattern[str]:
    """What fits a template with {names}."""
    pieces = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(
            f"(?P<{piece}>{FIELDS.get(piece, '.*?')})" if at % 2 else re.escape(piece)
            for at, piece in enumerate(pieces)
        )
    )


PATTERNS = [(_pattern(english), japanese) for english, japanese in sentences.JAPANESE.items()]


@dataclass(frozen=True)
class Language:
    """Calling it with an English phrase gives the phrase in this language, its {names} filled in.

    >>> Language("ja")("no data since {time}", time="10:00:00")
    '10:00:00 以降データなし'
    """

    code: Code

    def __call__(self, phrase: str, /, **values: object) -> str:
        """A phrase that the table lacks stays English; a test sees to it that none does. An error is a sentence."""
        text = JAPANESE.get(phrase, phrase) if self.code == "ja" else phrase
        told = {name: self.sentence(str(one)) if isinstance(one, Exception) else one for name, one in values.items()}
        return text.format(**told) if told else text

    def sentence(self, text: str) -> str:
        """What a device or a rule of the hub says, where it is one of the sentences that are known, else as it is.

        >>> Language("ja").sentence("cam0 (camera): the picture is white; lower the exposure or the light")
        'cam0（カメラ）：画像が真っ白です。露出か照明を下げてください'
        """
        if self.code == "en" or not text:
            return text
        for pattern, japanese in PATTERNS:
            if found := pattern.fullmatch(text):
                return japanese.format(**{name: self.sentence(part) for name, part in found.groupdict().items()})
        return JAPANESE.get(text, text)

    def number(self, value: float, digits: int = 0) -> str:
        """Both languages group by commas and have a decimal point.

        >>> Language("ja").number(12345.678, 1)
        '12,345.7'
        """
        return f"{value:,.{digits}f}"

    def clock(self, time_ns: int) -> str:
        """Time of day at the plant, 24 hours."""
        return _local(time_ns).strftime("%H:%M:%S")

    def day(self, time_ns: int) -> str:
        """The date at the plant.

        >>> Language("en").day(1795428000 * NS)[-8:], Language("ja").day(1795428000 * NS)[:8]
        ('Nov 2026', '2026年11月')
        """
        day = _local(time_ns)
        if self.code == "ja":
            return f"{day.year}年{day.month}月{day.day}日"
        return f"{day.day} {MONTHS[day.month - 1]} {day.year}"

    def moment(self, time_ns: int, now_ns: int) -> str:
        """Time of day, with the date before it where that is not today's; a dash for 0."""
        if not time_ns:
            return NONE
        same = _local(time_ns).date() == _local(now_ns).date()
        return self.clock(time_ns) if same else f"{self.day(time_ns)} {self.clock(time_ns)}"

    def span(self, seconds: float) -> str:
        """A length of time in its largest fitting unit.

        >>> Language("en").span(5), Language("en").span(7500), Language("ja").span(200000)
        ('5 s', '2 h', '2 日')
        """
        for size, phrase in ((86_400, "{n} d"), (3600, "{n} h"), (60, "{n} min")):
            if abs(seconds) >= (1.5 * size if size < 86_400 else 2 * size):
                return self(phrase, n=round(seconds / size))
        return self("{n} s", n=round(seconds))

    def joined(self, *parts: str) -> str:
        """Parts of one line that are not empty."""
        return " · ".join(part for part in parts if part)


def language_of(connection: HTTPConnection) -> Language:
    """What the visitor has chosen, else what the browser prefers, else English."""
    chosen = connection.cookies.get(COOKIE)
    for code in LANGUAGES:
        if chosen == code:
            return Language(code)
    return Language(_preferred(connection.headers.get("accept-language", "")))


def _preferred(header: str) -> Code:
    """The first language of ours in Accept-Language, by its weights (RFC 9110, 12.5.4).

    >>> _preferred("fr, ja;q=0.8, en;q=0.5"), _preferred("en-GB,ja;q=0.9"), _preferred("ja;q=0"), _preferred("")
    ('ja', 'en', 'en', 'en')
    """
    found: list[tuple[float, Code]] = []
    for part in header.split(","):
        name, _, weight = part.partition(";q=")
        for code in LANGUAGES:
            if name.strip().lower().split("-")[0] == code:
                found.append((_weight(weight), code))
    wanted = [code for weight, code in sorted(found, key=lambda one: -one[0]) if weight > 0]
    return wanted[0] if wanted else "en"


def _weight(text: str) -> float:
    try:
        return float(text or 1.0)
    except ValueError:
        return 0.0


def _local(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns / NS)
