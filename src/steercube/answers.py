r"""Read which option a generated response chooses, by strict rules that never guess.

A response is normalised first: thinking (`<think>...</think>`, or everything after an unclosed
`<think>`), Markdown and quotation marks are dropped, and full-width and Chinese punctuation is
replaced by ASCII. Then, in this order:

1. It *opens* with an option: `(A)`, `A)`, `(A`, `A.`, `A:`, `Option A`, or a lone `A`. That is the
   answer, unless both options are only listed (`(A) Yes (B) No`, `A or B`) or the text chooses the
   other option later.
2. It makes a single *explicit choice* anywhere: "the correct answer is (B)", "Answer: B", "I would
   choose (A)", "(B) is correct", 答案是B, 我选A. Two different choices count as none.
3. Otherwise there is no valid answer: refusals, both options named without a choice, an option
   quoted in passing, a sentence that begins with the article "A", an empty response.

Wrong for: free text that argues for an option without naming its letter.
"""

import re
import unicodedata

READER = "steercube.answers 1"
"""Name of this reader, recorded with what it read; its number grows if answers are read anew."""
OPTION = (
    r"(?:\(\s*([AaBb])\s*\)|\(\s*((?-i:[AB]))(?=\s*(?:\n|$))|\b([AaBb])\s*\)"
    r"|\b((?-i:[AB]))(?=\s*(?:[.:,;!\n]|$)))"
)
"""Ways to write an option: (A), (A at the end of a cut text, A), a capital that ends a phrase."""

NOUN = r"(?:answer|choice|option|response|selection|pick)"
_CHOICES = [
    # The correct answer is: (B); my choice would be B; answer: (B); answer (B)
    rf"\b{NOUN}\s*(?:is|was|would be|should be|must be|will be|has to be|→|->|=|:|-)?\s*:?\s*"
    rf"(?:option|choice|letter)?\s*:?\s*{OPTION}",
    # I would choose (A); I'd go with option B; choosing (A)
    r"\b(?:choos|pick|select|prefer|opt for|go with|going with|side with|vote for|agree with)"
    rf"(?:e|ed|ing|s)?\s+(?:{NOUN}|letter)?\s*:?\s*{OPTION}",
    # (B) is the correct answer; option A would be best
    rf"(?:{OPTION}|\b((?-i:[AB])))\s*(?:is|would be|seems|looks)\s+"
    rf"(?:clearly |definitely |certainly |probably )?(?:the |my )?(?:most )?"
    rf"(?:correct|right|best|better|true|accurate|appropriate|{NOUN})",
    # 答案是B; 正确答案: (A); 我选择A; 选B
    rf"(?:答案|选项|选择|选)\s*(?:是|为|应该是|应为)?\s*:?\s*{OPTION.replace(chr(92) + 'b', '')}",
    r"(?:答案|选项|选择|选)\s*(?:是|为|应该是|应为)?\s*:?\s*\(?((?-i:[AB]))(?![A-Za-z])",
]
_CHOICE = re.compile("|".join(f"(?:{pattern})" for pattern in _CHOICES), re.IGNORECASE)
_OPENING = re.compile(
    rf"(?:{NOUN}\s*:?\s*)?"
    r"(?:\(\s*([AB])\s*\)|\(\s*((?-i:[AB]))\b(?!\s+[a-z])|([AB])\s*\))"
    r"|(?:option|choice)\s+([AB])\b",
    re.IGNORECASE,
)
_LONE_LETTER = re.compile(
    r"([AB])(?!\.\s?[A-Z]\.)(?=\s*(?:[.:]|\n|$|(?:-|–|—)\s))|([ab])(?=\s*[.)]?\s*$)"
)
_NAMED = re.compile(r"\(\s*([AB])\s*\)|(?<![\w(])([AB])\s*\)|\boption\s+([AB])\b", re.IGNORECASE)
_SENTENCE_PUNCTUATION = re.compile(r"[.!?;,]|\b(?:not|rather|instead|because|since|but)\b")
_BARE_BOTH = re.compile(r"(?:both|either|neither)\b|\(?[AB]\)?\s*(?:/|&|,|\band\b|\bor\b|\bnor\b)"
                        r"\s*\(?[AB]\b", re.IGNORECASE)  # fmt: skip
_NO_CHOICE_BEFORE = re.compile(
    r"\b(?:not|never|cannot|neither|nor|whether|wrong|incorrect|if you|each|every|following)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_NO_CHOICE_AFTER = re.compile(
    r"\)?\s*(?:/|&|,|\b(?:and|or|nor)\b)\s*(?:option )?\(?\s*[AB]\b", re.IGNORECASE
)
_DENIED = re.compile(r"\)?\s*(?:is not|isn't|is wrong|is incorrect|would not)\b", re.IGNORECASE)
_FORMS = str.maketrans("【】〔〕「」『』[]{}。、", "()()()()()().,")

_BEGINNINGS = {
    "(X) ...": re.compile(r"\(?\s*[AB]\s*\)", re.IGNORECASE),
    "Answer: (X) ...": re.compile(r"answer\s*:\s*\(?\s*[AB]\s*\)", re.IGNORECASE),
    "The answer is (X) ...": re.compile(
        rf"the (?:most )?(?:\w+ )?{NOUN} is\s*:?\s*\(?\s*[AB]\s*\)", re.IGNORECASE
    ),
    "As ... (X) ...": re.compile(r"as\b", re.IGNORECASE),
}
ANOTHER_FORM = "another form"
AS_WITHOUT_CHOICE, WITHOUT_CHOICE = "As ..., no choice", "another form, no choice"
FORMS = (*_BEGINNINGS, ANOTHER_FORM, AS_WITHOUT_CHOICE, WITHOUT_CHOICE)
"""Forms of a response: how it begins, and whether it chooses; X stands for either letter."""


def answer_of(response: str) -> str:
    """The letter that `response` chooses, "A" or "B", or "" if it makes no valid choice.

    >>> answer_of("The correct answer is **(B)**"), answer_of("(A) Yes\\n(B) No")
    ('B', '')
    """
    text = spoken(response)
    chosen = {_letter(match) for match in _CHOICE.finditer(text) if _is_meant(match, text)}
    opening = _opening(text)
    if opening and not (chosen - {opening}) and not _only_lists(text):
        return opening
    if opening and not _only_lists(text):
        return ""
    return chosen.pop() if len(chosen) == 1 else ""


def form_of(response: str) -> str:
    """The response's form, one of FORMS, to count which forms another reading gets wrong.

    >>> form_of("Answer: **(B)** No, I cannot."), form_of("As an AI, I see (A) and (B).")
    ('Answer: (X) ...', 'As ..., no choice')
    """
    text = spoken(response)
    if not answer_of(response):
        begins_with_as = _BEGINNINGS["As ... (X) ..."].match(text)
        return AS_WITHOUT_CHOICE if begins_with_as else WITHOUT_CHOICE
    return next((form for form, begins in _BEGINNINGS.items() if begins.match(text)), ANOTHER_FORM)


def spoken(response: str) -> str:
    """The response without thinking and Markdown, with ASCII punctuation."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", " ", response, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    text = unicodedata.normalize("NFKC", text).translate(_FORMS)
    text = re.sub(r"[*_`#>\"“”‘]|\\boxed", "", text.replace("’", "'"))
    return re.sub(r"[ \t]+", " ", text).strip(" \n\r-•")


def _opening(text: str) -> str:
    """The letter of the option that the text opens with, or ""."""
    match = _OPENING.match(text) or _LONE_LETTER.match(text)
    if match is None:
        return ""
    after = text[match.end() :]
    return "" if _DENIED.match(after) or _NO_CHOICE_AFTER.match(after) else _letter(match)


def _is_meant(match: re.Match[str], text: str) -> bool:
    """Whether the choice is not negated or questioned in its clause, nor one of two in a list."""
    clause = re.split(r"[.,;:!?\n]", text[: match.start()])[-1] + match[0]
    after = text[match.end() :]
    return not (_NO_CHOICE_BEFORE.search(clause) or _NO_CHOICE_AFTER.match(after))


def _only_lists(text: str) -> bool:
    """Whether the text opens with both options side by side, as a quoted question does."""
    if _BARE_BOTH.match(text):
        return True
    named = list(_NAMED.finditer(text))
    first = next(iter(named), None)
    other = next((m for m in named if _letter(m) != _letter(named[0])), None)
    if first is None or other is None or first.start() > 0:
        return False
    between = text[first.end() : other.start()]
    begins_a_line = text[: other.start()].rstrip(" -").endswith("\n")
    return begins_a_line or not _SENTENCE_PUNCTUATION.search(between.lower())


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()
