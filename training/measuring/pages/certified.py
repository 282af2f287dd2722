"""What `robustclip certified` found as a section of the results page: a column for each smoothed rule, a line
for each thing that was counted.
"""

from training.measuring.pages.wording import grid, section
from training.measuring.schema.files import Certified, CertifiedFile, Share


def certified_section(name: str, content: CertifiedFile) -> str:
    """The section of `results/NAME.json`."""
    columns = [counted(row) for row in content.results]
    cells = {(label, place): text for place, own in enumerate(columns) for label, text in own.items()}
    heads = ["per cent of all pictures", *map(rule_words, content.results)]
    lines = [
        *grid(heads, range(len(columns)), cells),
        "",
        *(f"    {row.command}" for row in content.results),
    ]
    about = "; ".join(sorted(set(map(_about, content.results))))
    return section(name, content.title, about, content.says, lines)


def counted(row: Certified) -> dict[str, str]:
    """What was counted of one smoothed rule, by its name, in the order in which to read it."""
    cells = {
        f"right by {row.votes:,} votes": _share(row.right),
        f"no answer by {row.votes:,} votes": _share(row.abstained),
        "certified, radius above 0": _share(row.certified),
    }
    cells |= {f"right within L2 {part.l2:g} (Linf {part.linf})": _share(part) for part in row.within}
    for part in row.attacks:
        interval = ""
        if part.low is not None and part.high is not None:
            interval = f" ({100 * part.low:.1f} to {100 * part.high:.1f} %)"
        cells[f"fell to an attack at {part.factor:g} of the {part.norm.capitalize()} radius"] = (
            f"{part.fell} of {part.n}{interval}"
        )
    if row.direct is not None:
        cells["same votes without the kept embeddings"] = f"{row.direct.same} of {row.direct.n}"
    return cells


def rule_words(row: Certified) -> str:
    """The smoothed rule in words: who decides, and under how much noise."""
    denoised = {None: "not denoised", "own": "denoised"}.get(row.denoise, f"denoised by {row.denoise}")
    behind = "" if row.defense == "none" else f", then {row.defense}"
    return f"{row.prompt_set}, sigma {row.sigma:g}, {denoised}{behind}"


def _about(row: Certified) -> str:
    return (
        f"{row.group}, {row.n} pictures, seed {row.seed}, sigma {row.sigma:g}: {row.votes:,} votes after "
        f"{row.choosing:,} that choose the label, alpha {row.alpha:g} a picture, so radii of at most "
        f"{row.ceiling_l2:.3g}"
    )


def _share(part: Share) -> str:
    return f"{100 * part.share:.1f} ({100 * part.low:.1f} to {100 * part.high:.1f})"
