"""Makes rouge_l.json with Google's rouge-score 0.1.2, which fedpeft does not need: pip install rouge-score."""

import json
from pathlib import Path

import numpy as np
from rouge_score import rouge_scorer

WORDS = (
    "the",
    "The",
    "cat",
    "cat's",
    "sat",
    "on",
    "mat.",
    "a_b",
    "3.5",
    "x-ray",
    "...",
    "of",
    "(red)",
    "BLUE",
    "?!",
    "2nd",
)


def text(draw: np.random.Generator) -> str:
    """Up to 13 words, between spaces, tabs and line ends."""
    count = int(draw.integers(0, 14))
    gaps = draw.choice([" ", "  ", "\n", "\t"], count)
    return "".join(word + gap for word, gap in zip(draw.choice(WORDS, count), gaps, strict=True))


def main() -> None:
    """Writes the file."""
    scorer, draw = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False), np.random.default_rng(0)
    pairs = [(text(draw), text(draw)) for _ in range(200)]
    cases = [[one, other, scorer.score(one, other)["rougeL"].fmeasure] for one, other in pairs]
    content = {"source": "rouge-score 0.1.2, RougeScorer(['rougeL']).score(reference, answer)", "cases": cases}
    Path(__file__).with_name("rouge_l.json").write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
