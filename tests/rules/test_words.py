"""One word per concept, and the field's own: words and translated idioms that must not return to code, docs and cards.

A pattern is matched in prose only: comments and strings of Python files, every line of other texts. Words with a second,
correct meaning have a pattern for the wrong one, such as "run of frames" instead of "run".
"""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[2]
FOLDERS = ("vasomim_hf", "training", "benchmarks", "docs", "model_cards")
SUFFIXES = (".py", ".md", ".yaml", ".yml")
# Pattern and what to write instead.
WORDS = {
    r"hang(s|ing)? on": "depend on",
    r"say(s|ing)? so": "state, warn",
    r"(is|are|was|were|be) told": "is passed, is reported; arguments",
    r"surest|surer": "highest-scoring",
    r"middling": "median",
    r"made[- ]up": "synthetic",
    r"films?": "video (AVI, MP4), cine (frames over time)",
    r"cine runs?|runs? of (frames|a patient|coronary|angiogra\w+|the same)|frames? of (a|one|the) run": "cine",
    r"runs? of training": "training run",
    r"(?<!\")twins?(?!\.json)|near[- ]cop(y|ies)|parts no group": "near duplicates; keeps groups together",
    r"by heart": "overfit",
    r"(a|the|its|their|small(er|est)?|larg(er|est)|least) shares?|shares? of|as shares": "fraction, relative to",
    r"(by|of) the rule of Xavier|Xavier'?s rule": "Xavier-initialised",
    r"branch dropout": "drop path (stochastic depth)",
    r"beginnings": "initialisations",
    r"image branch": "detail stem",
    r"(has|have|with|had) no place|no place for": "unexpected keys",
    r"(is|are|was|were|be|been|frames|rows|files|boxes) left out|leaves? (it|them|that) out|leave out|leaving out": "skipped, excluded, omitted, disabled",
    r"hand(s|ed|ing)? on": "pass",
    r"brings?|brought": "provide, map back, cause",
    r"of (its|their|his) own": "separate, its own",
    r"beside": "next to, in addition to, relative to",
    r"(?<!there )(is|are|was|were) no (?!longer|more|need|way|reason|such|match|guarantee|substitute|fewer|less|worse|better)": "is not a",
    r"anew": "again",
    r"there already|that (is|are) there": "existing, already exists",
    r"must lie": "must be",
    r"pass(es|ed)? over (?!the|a|every|each|all|its)": "ignored, skipped",
    r"goes on|going on (with|from|where)|go on (with|from|where|to)|to go on|\w+, and go on": "continue, resume",
    r"cut short": "truncated",
    r"amiss": "faults",
    r"t(ell|ells|old) \w+( \w+)? apart|told apart": "distinguish",
    r"[Nn]ame (another|the one) ": "choose",
    r"drawn (anew|at the start|by the)": "initialised, sampled",
    r"(does|do|did) not tell": "is unknown, does not contain",
    r"whole numbers?": "integer",
    r"what it (is|was|says|says of|holds|gives|does with|takes)": "name the thing",
    r"without a word": "silently, unexpectedly",
    r"(model|file|function|table|head|network|encoder|script|package|trainer|loader|reader|test|frame)s? knows?": "no intentions for things",
    r"stands? beside|lies? beside": "is next to",
    r"laid down|put off": "defined; deferred",
    r"for who|whoever": "users who, callers",
    r"the frame as it is|such as it is|as it stands": "the original frame, unchanged",
    r"that which|of what is": "name the thing",
    r"looked into": "examined",
    r"a number of a part|of a trial on": "name the thing",
}
ORIGINALS = {
    "Of a trial on its first frames, what says so: a number of a part is not one of the split": "state, warn",
    "What a script in `training/` does with its arguments, and what it is told": "is passed, is reported; arguments",
    "the 100 surest of a frame": "highest-scoring",
    "Share of the frame's area kept by the random crop": "fraction, relative to",
    "Near copies: frames of one run a moment later": "near duplicates; keeps groups together",
    "frames of one run a moment later": "cine",
    "A model that learns by heart": "overfit",
    "drawn by the rule of Xavier": "Xavier-initialised",
    "whether labels hang on left and right": "depend on",
    "tensors that the model has no place for": "unexpected keys",
    "Frames that cannot be read are left out": "skipped, excluded, omitted, disabled",
    "the film holds 30 frames": "video (AVI, MP4), cine (frames over time)",
    "several beginnings of the encoder": "initialisations",
    "the image branch of the head": "detail stem",
    "the middling case": "median",
}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of prose with their numbers."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                text = re.sub(r"\{[^{}]*\}", "{}", token.string) if token.string[0] in "fF" else token.string
                if " " in text:  # a single word is a name or a key
                    yield from enumerate(text.splitlines(), token.start[0])


def wrong_words(text: str) -> Iterator[tuple[str, str]]:
    """Wrong words of a line, each with what to write instead."""
    for pattern, right in WORDS.items():
        for match in re.finditer(rf"(?<![\w`-])({pattern})(?![\w`])", text, re.IGNORECASE):
            yield match[0], right


def checked_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    files += [ROOT / "README.md", ROOT / "mkdocs.yml"]
    return [path for path in sorted(files) if path.is_file()]


def test_wrong_words_do_not_return():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {wrong!r}, write: {right}"
        for path in checked_files()
        for number, line in prose(path)
        for wrong, right in wrong_words(line)
    ]
    assert not found, "\n".join(["", *found])


def test_the_original_sentences_are_found():
    missed = [text for text, right in ORIGINALS.items() if right not in [right for _, right in wrong_words(text)]]
    assert not missed, missed
