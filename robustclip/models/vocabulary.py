"""Words that come with CLIP: its authors' ImageNet names and templates, and the tokenizer's whole words."""

import open_clip


def imagenet_names() -> tuple[str, ...]:
    """The 1000 ImageNet class names as CLIP's authors curated them, in ImageNet's order."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 ImageNet templates of CLIP's authors."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def whole_words() -> tuple[str, ...]:
    """Every word that is one token of CLIP's tokenizer, most frequent first."""
    return tuple(word_ids())


def word_ids() -> dict[str, int]:
    """`whole_words` with their token ids, the rows of a CLIP's token table."""
    return {
        token.removesuffix("</w>"): index
        for token, index in open_clip.SimpleTokenizer().encoder.items()
        if token.endswith("</w>")
    }
