"""What users write behind options, read the same by every command."""

from training.options import words


def test_commas_and_repetitions_mean_the_same() -> None:
    assert words(["0,1", "2"]) == words(["0", " 1 ,2,"]) == ["0", "1", "2"]
    assert words([",", ""]) == []
